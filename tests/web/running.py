"""A server in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.web.conftest import ROOT


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server of the toy model in a process of its own, and its address."""
    command = [sys.executable, "-m", "ovseg", "serve", "--model", "toy-ovseg", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, process.stderr.read())
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()
