"""The REST endpoint: results, every refusal with its status, and that its pages load nothing from elsewhere."""

from __future__ import annotations

import asyncio
import re
import shlex
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from starlette import testclient

from ovseg.web.app import create_app
from ovseg.web.limits import Refused
from ovseg.web.line import Line
from ovseg.web.page import STATIC
from tests.web.conftest import ROOT, WORDS, encoded


@pytest.fixture(scope="module")
def service(make_service):
    return make_service(upload=200_000, pixels=300_000, texts=200)


@pytest.fixture(scope="module")
def client(service):
    with testclient.TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def post(client, content: bytes, name: str = "a.png", **fields):
    return client.post("/segment", files={"image": (name, content)}, data={"words": ", ".join(WORDS)} | fields)


@pytest.mark.parametrize("fields", [{}, {"granularity": 0.5}, {"min_score": 0.3}, {"proposer": "BoundaryTree"}])
def test_result_is_that_of_a_call(client, service, scene_image, content, fields):
    settings = dict(fields)
    segmenter = service.segmenter(settings.pop("proposer", ""))
    expected = segmenter(scene_image, WORDS, **settings)
    answer = post(client, content, "folder/scene 8.png", **fields)
    assert answer.status_code == 200
    result = answer.json()
    assert (result["height"], result["width"]) == scene_image.shape[:2]
    assert result["names"] == WORDS and result["image"] == "scene 8.png" and result["model"] == "ovseg_toy"
    assert [one["category_name"] for one in result["segments"]] == [WORDS[k] for k in expected.found]
    for segment in result["segments"]:
        mask = coco_mask.decode(segment["segmentation"]).astype(bool)
        assert np.array_equal(mask, expected.mask(segment["category_name"]))
        assert segment["score"] == pytest.approx(expected.scores[segment["category_id"]])


def test_words_in_all_forms(client, content):
    synonyms = post(client, content, words="grass, meadow; red star")
    assert synonyms.json()["names"] == ["grass", "red star"]
    lines = post(client, content, words="grass,\nred star,\n")
    assert lines.json()["names"] == ["grass", "red star"]
    background = post(client, content, words="grass", background="wood, Grass, tile")
    assert background.json()["background"] == ["wood", "tile"]  # a word that is looked for is not background
    label_set = post(client, content, words="", label_set="pascal_voc_20")
    assert len(label_set.json()["names"]) == 20


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a size, with a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


REFUSED = [
    ({"words": ""}, 400, "words or a label set are needed, and none is given"),
    ({"words": " , \n"}, 400, "the words is empty"),
    ({"label_set": "pascal_voc_20"}, 400, "both are given"),
    ({"words": "", "label_set": "nothing"}, 400, "there is no label set 'nothing'"),
    ({"words": "cat, cat"}, 400, "'cat' comes twice"),
    ({"words": ", ".join(f"word {k}" for k in range(201))}, 400, "201 words and synonyms, and this server takes 200"),
    ({"words": "x" * 100_001}, 400, "words is not valid: String should have at most 100000 characters"),
    ({"label_set": "x" * 201}, 400, "label_set is not valid: String should have at most 200 characters"),
    ({"words": "," * 99_999}, 400, "the words is empty"),
    ({"words": "", "label_set": "ade20k_150", "background": "wood"}, 200, ""),  # more than 200 texts, not written ones
    ({"words": "/etc/hosts.txt"}, 200, ""),  # a word, not a file of the server
    ({"granularity": "2"}, 400, "granularity is not valid: Input should be less than or equal to 1"),
    ({"granularity": "much"}, 400, "granularity is not valid"),
    ({"min_score": "x"}, 400, "min_score is not valid"),
    ({"min_score": "nan"}, 400, "min_score is nan: give a number"),
    ({"proposer": "SAM"}, 400, "there is no proposer 'SAM' here: choose one of own, BoundaryTree"),
]


@pytest.mark.parametrize(("fields", "status", "message"), REFUSED)
def test_words_and_settings_that_are_refused(client, content, fields, status, message):
    answer = post(client, content, **fields)
    assert answer.status_code == status
    if status != 200:
        assert list(answer.json()) == ["error"] and message in answer.json()["error"]


def test_images_that_are_refused(client, content, scene_image, service):
    large = encoded(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    for data, status, message in (
        (b"", 400, "a.png is empty (0 bytes)"),
        (b"#!/bin/sh\nrm", 415, "a.png is not an image: give a JPEG"),
        (b"<svg xmlns='x'/>", 415, "a.png is not an image"),
        (png_header(60_000, 60_000), 413, "a.png has more than 0.3 million pixels"),
        (png_header(600, 600), 413, "a.png has more than 0.3 million pixels"),
        (encoded(scene_image, "JPEG")[:900], 400, "a.png is truncated or damaged"),
        (large, 413, "the request is larger than 0.2 MB"),
        (large * 100, 413, "the request is larger than 0.2 MB"),
    ):
        answer = post(client, data)
        assert answer.status_code == status, (answer.text, message)
        assert message in answer.json()["error"]
    missing = client.post("/segment", data={"words": "cat"})
    assert missing.status_code == 400 and missing.json()["error"].startswith("image is missing")
    text = client.post("/segment", data={"words": "cat", "image": "a.png"})
    assert text.status_code == 400 and "image is not valid" in text.json()["error"]
    assert client.post("/segment", content=b"{}").status_code == 400
    assert client.get("/segment").status_code == 405 and client.get("/nothing").status_code == 404
    assert post(client, content).status_code == 200  # the server is as before
    assert not service.model_line.is_busy


def test_a_body_without_a_length_is_refused_too(client):
    def chunks():
        for _ in range(50):
            yield b"x" * 10_000

    answer = client.post("/segment", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413


def test_a_full_queue(make_service, content, monkeypatch):
    service, begun, go_on, answers = make_service(waiting=1), threading.Event(), threading.Event(), []
    segment = service.segment

    def slowly(*given):
        begun.set()
        assert go_on.wait(60)
        return segment(*given)

    monkeypatch.setattr(service, "segment", slowly)
    with testclient.TestClient(create_app(service)) as client:
        threads = [threading.Thread(target=lambda: answers.append(post(client, content))) for _ in range(2)]
        threads[0].start()
        assert begun.wait(60)
        threads[1].start()
        while client.get("/health").json()["waiting"] < 1:  # it answers while the model works
            time.sleep(0.01)
        refused = post(client, content)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert "1 requests are waiting" in refused.json()["error"]
        go_on.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in (*answers, post(client, content))] == [200, 200, 200]


def test_a_line_does_not_count_jobs_that_failed():
    line = Line(waiting=0)

    async def fail_often():
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await line.run(lambda: 1 / 0)
        return await line.run(lambda: 7)

    assert asyncio.run(fail_often()) == 7 and not line.is_busy


def test_a_job_that_nobody_waits_for_is_left_out(monkeypatch):
    monkeypatch.setattr("ovseg.web.line.POLL", 0.01)
    line, go_on, done = Line(waiting=2), threading.Event(), []

    async def left():
        return True

    async def ask():
        first = asyncio.create_task(line.run(lambda: go_on.wait(60)))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="closed the connection"):
            await line.run(lambda: done.append("left"), left)
        cancelled = asyncio.create_task(line.run(lambda: done.append("cancelled"), is_left=lambda: asyncio.sleep(9)))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        last = asyncio.create_task(line.run(lambda: done.append("last")))
        await asyncio.sleep(0)
        assert line.waiting == 1
        go_on.set()
        return await asyncio.gather(first, last)

    assert asyncio.run(ask()) == [True, None] and done == ["last"] and not line.is_busy


def test_health_and_description(client):
    health = client.get("/health").json()
    assert (
        health["status"] == "ok" and health["model"] == "ovseg_toy" and health["proposers"] == ["own", "BoundaryTree"]
    )
    api = client.get("/openapi.json").json()
    assert sorted(api["paths"]) == ["/health", "/segment"]
    statuses = api["paths"]["/segment"]["post"]["responses"]
    assert {"200", "400", "413", "415", "503"} <= statuses.keys()


def test_the_example_of_the_documents(client, content, here, capsys):
    page = (ROOT / "docs" / "web_page.md").read_text(encoding="utf-8").partition("## REST")[2]
    command, script = (page.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("bash", "python"))
    words = shlex.split(command)
    fields = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-F")
    assert fields.pop("image") == "@photo.jpg" and words[0] == "curl" and words[-2] == ">"
    (address,) = (word for word in words if word.startswith("http://127.0.0.1:7860/"))
    answer = client.post(
        address.removeprefix("http://127.0.0.1:7860"), files={"image": ("a.jpg", content)}, data=fields
    )
    assert answer.status_code == 200
    (here / words[-1]).write_bytes(answer.content)
    exec(script, {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(answer.json()["segments"]) and "%" in printed[0]


def test_pages_name_no_other_host(client):
    for path in ("/", "/docs", *(f"/static/{file.name}" for file in STATIC.iterdir())):
        answer = client.get(path)
        assert answer.status_code == 200
        elsewhere = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", answer.text.replace("http://www.w3.org/2000/svg", ""))
        assert not elsewhere, (path, elsewhere)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_pages_of_other_hosts_cannot_ask_a_local_server(service):
    app = create_app(service, ("localhost", "127.0.0.1"))
    with testclient.TestClient(app, base_url="http://evil.example") as client:
        assert client.get("/health").status_code == 400
    with testclient.TestClient(app, base_url="http://localhost:7860") as client:
        assert client.get("/health").status_code == 200


BROWSERS = [
    ({}, 200),
    ({"Origin": "http://localhost:7860"}, 200),
    ({"Origin": "https://public.example", "Sec-Fetch-Site": "same-origin"}, 200),  # a proxy that does not pass Host on
    ({"Origin": "http://localhost:3000"}, 403),
    ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, 403),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), BROWSERS)
def test_pages_of_other_sites_change_nothing(service, headers, status):
    app = create_app(service, ("localhost",))
    with testclient.TestClient(app, base_url="http://localhost:7860", headers=headers) as client:
        answer = client.delete("/api/scenes/none")
        assert answer.status_code == status
        assert status == 200 or "a page of another site sent this request" in answer.json()["error"]
        assert client.post("/segment").status_code == (403 if status == 403 else 400)
        assert client.get("/health").status_code == 200
