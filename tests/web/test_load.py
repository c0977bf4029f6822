"""A server in a process of its own under load: no error, no growth of memory; make test-web runs it."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from ovseg.toy import make_scene
from tests.web.conftest import WORDS, encoded
from tests.web.running import running

pytestmark = pytest.mark.browser
AT_ONCE, WARM_UP = 16, 32
GROWTH = 64  # MB


def memory_of(process: int) -> float:
    """Return the resident memory of a process, MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1000


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory of processes is read from /proc")
@pytest.mark.parametrize(("path", "requests", "granularity"), [("/segment", 200, ""), ("/api/scenes", 100, "0.5")])
def test_load(path, requests, granularity, capsys):
    contents = [encoded(make_scene(seed).image) for seed in range(8)]
    with running("--queue", "16", "--memory", "8") as (process, address), httpx2.Client(timeout=300) as client:

        def ask(number: int) -> tuple[int, float]:
            begun = time.perf_counter()
            files = {"image": ("a.png", contents[number % len(contents)])}
            fields = {"words": ", ".join(WORDS[: 1 + number % 4]), "granularity": granularity}
            answer = client.post(address + path, files=files, data=fields)
            return answer.status_code, time.perf_counter() - begun

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(ask, range(WARM_UP)))
            before, begun = memory_of(process.pid), time.perf_counter()
            answers = list(pool.map(ask, range(requests)))
            seconds, after = time.perf_counter() - begun, memory_of(process.pid)
        assert Counter(status for status, _ in answers) == {200: requests}
        slowest = max(time for _, time in answers)
        with capsys.disabled():
            print(
                f"\n{path}: {requests} requests, {AT_ONCE} at once: {requests / seconds:.1f} a second, slowest "
                f"{slowest:.2f} s, memory before {before:.0f} MB, after {after:.0f} MB"
            )
        assert after - before < GROWTH
        assert client.get(f"{address}/health").json()["waiting"] == 0
        process.terminate()
        process.communicate(timeout=120)
        assert process.returncode == 143


def test_more_than_the_queue_takes_is_refused_at_once():
    content = encoded(make_scene(0).image)
    with running("--queue", "2") as (_, address), httpx2.Client(timeout=300) as client:

        def ask(number: int) -> int:
            return client.post(f"{address}/segment", files={"image": content}, data={"words": "grass"}).status_code

        with ThreadPoolExecutor(AT_ONCE) as pool:
            statuses = Counter(pool.map(ask, range(36)))
        assert set(statuses) == {200, 503}
        assert client.post(f"{address}/segment", files={"image": content}, data={"words": "grass"}).status_code == 200
