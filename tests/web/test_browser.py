"""The page in a real browser: make test-web runs these tests with Debian's Chromium."""

from __future__ import annotations

import json
import shutil
import threading
import time
import zipfile

import numpy as np
import pytest
import uvicorn
from PIL import Image

from ovseg.result.drawing import word_color
from ovseg.toy import make_scene
from ovseg.web.app import create_app
from ovseg.web.server import open_socket
from tests.web.conftest import WORDS, encoded

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONGEST = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "there is no Chromium: run `apt-get install chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(make_service):
    """Address of a server in a thread, so that the tests count calls of its model."""
    with open_socket("127.0.0.1", 0) as listening:
        app = create_app(make_service(upload=300_000, pixels=2_000_000))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def visit(browser, address):
    """Open the page as a new visitor; no page has an error or a request to another host."""
    problems = []

    def open_page(width: int = 1280, height: int = 800, path: str = "/", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        page.set_default_timeout(LONGEST)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: check(request.url))
        page.goto(address + path)
        page.wait_for_selector("#model:not([hidden])" if path == "/" else "article section")
        return page

    def check(url: str) -> None:
        if not url.startswith((f"{address}/", "data:", f"blob:{address}/")):
            problems.append(f"a request to {url}")

    yield open_page
    for context in browser.contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def files(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "scene.png").write_bytes(content)
    (folder / "other.png").write_bytes(encoded(make_scene(9).image))
    (folder / "text.png").write_text("no image")
    (folder / "damaged.jpg").write_bytes(encoded(make_scene(9).image, "JPEG")[:1000])
    (folder / "empty.png").touch()
    (folder / "large.png").write_bytes(encoded(np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)))
    (folder / "bomb.png").write_bytes(encoded(np.zeros((1500, 1500, 3), np.uint8)))
    return folder


def segment(page, file, words: str = ", ".join(WORDS)) -> None:
    page.set_input_files("#file", str(file))
    page.fill("#words", words)
    run(page)


def run(page) -> None:
    with page.expect_response(lambda answer: answer.url.endswith("/api/scenes")):
        page.click("#run")
    page.wait_for_selector("#busy", state="hidden")


def legend(page) -> dict[str, str]:
    """Share by word of the legend."""
    entries = page.locator("#legend button").all()
    return {one.locator(".word").inner_text(): one.locator(".share").inner_text() for one in entries}


def painted(page) -> list[int]:
    """The colours that the overlay has, as numbers."""
    return page.evaluate(
        """() => { const canvas = document.getElementById("overlay");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const seen = new Map();
        for (let i = 0; i < data.length; i += 4) { const key = data[i] * 65536 + data[i + 1] * 256 + data[i + 2];
          seen.set(key, (seen.get(key) || 0) + 1); }
        return [...seen].filter(([, count]) => count > 100).map(([key]) => key); }"""
    )


def click_at(page, x: float, y: float) -> None:
    box = page.locator("#overlay").bounding_box()
    with page.expect_response(lambda answer: "/region?" in answer.url):
        page.locator("#overlay").click(position={"x": x * box["width"], "y": y * box["height"]})
    page.wait_for_selector("#region:not([hidden])")


def test_upload_words_and_run(visit, files, toy, scene_image):
    page = visit()
    assert page.locator("#empty").is_visible() and page.locator("#results").is_hidden()
    segment(page, files / "scene.png")
    expected = toy(scene_image, WORDS)
    shares = {expected.names[k]: f"{expected.fractions[k]:.1%}".replace("%", " %") for k in expected.found}
    assert legend(page) == shares
    assert page.locator("#empty").is_hidden() and page.locator("#size").inner_text() == "144 × 176"
    colors = {int(word_color(k).as_hex()[1:], 16) for k in expected.found if expected.fractions[k] > 0.05}
    assert all(min(distance(color, seen) for seen in painted(page)) <= 3 for color in colors)
    assert set(page.locator("#tags span").all_inner_texts()) <= set(WORDS) and page.locator("#tags span").count() > 1


def distance(one: int, other: int) -> int:
    """Largest difference of a channel; canvases keep colours multiplied by their opacity."""
    return max(abs((one >> shift & 255) - (other >> shift & 255)) for shift in (0, 8, 16))


def test_the_slider_paints_again_without_clip(visit, files, toy, calls, scene_image):
    page = visit()
    before = calls.clip
    segment(page, files / "scene.png")
    assert calls.clip > before
    counted, shares = (calls.model, calls.clip), []
    for value in ("0.95", "0.3"):
        with page.expect_response(lambda answer: answer.url.endswith("/paint")):
            page.locator("#granularity").fill(value)
        page.wait_for_function(
            "value => document.getElementById('granularity-value').value === value", arg=f"{float(value):.2f}"
        )
        page.wait_for_timeout(200)
        shares.append(legend(page))
    assert (calls.model, calls.clip) == counted
    expected = [toy(scene_image, WORDS, granularity=value) for value in (0.95, 0.3)]
    for found, result in zip(shares, expected, strict=True):
        assert found["grass"] == f"{result.fractions[0]:.1%}".replace("%", " %")
    assert shares[0] != shares[1]
    with page.expect_response(lambda answer: answer.url.endswith("/paint")):
        page.click("#granularity-auto")
    page.wait_for_function("document.getElementById('granularity-value').value === 'auto'")


def test_the_table_of_a_click_is_explain(visit, files, toy, scene_image):
    page = visit()
    segment(page, files / "scene.png")
    explanation = toy(scene_image, WORDS, explain=True).explain()
    click_at(page, 0.5, 0.12)
    assert page.locator("#region-word").inner_text() in WORDS
    tables = page.locator("#masks table").all()
    assert tables
    for table in tables:
        mask = explanation[int(table.get_attribute("data-mask"))]
        rows = [row.locator("td").all_text_contents() for row in table.locator("tbody tr").all()]
        scores = [
            [one.word, *(f"{x:.3f}" for x in (one.own, one.clip, one.fused) if x is not None)] for one in mask.words
        ]
        assert [[cell for cell in row if cell != "–"] for row in rows] == scores


def test_rename_drop_and_undo(visit, files):
    page = visit()
    segment(page, files / "scene.png")
    before = legend(page)
    page.locator("#legend button").first.click()
    page.wait_for_selector("#region:not([hidden])")
    largest = next(iter(before))
    page.fill("#new-name", "lawn")
    page.check("#whole-word")
    with page.expect_response(lambda answer: answer.url.endswith("/edits")):
        page.click("#rename")
    page.wait_for_selector("#legend >> text=lawn")
    assert legend(page)["lawn"] == before[largest] and largest not in legend(page)
    page.locator("#legend button", has_text="lawn").click()
    page.wait_for_selector("#region:not([hidden])")
    with page.expect_response(lambda answer: answer.url.endswith("/edits")):
        page.click("#remove")
    page.wait_for_selector("#legend >> text=unlabelled")
    for _ in range(2):
        with page.expect_response(lambda answer: answer.url.endswith("/edits")):
            page.click("#undo")
        page.wait_for_timeout(200)
    assert legend(page) == before and page.locator("#undo").is_hidden()


def test_downloads(visit, files, tmp_path):
    page = visit()
    segment(page, files / "scene.png")
    saved = {}
    for kind in ("drawing", "labels", "coco", "yolo"):
        with page.expect_download() as download:
            page.click(f"#get-{kind}")
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    assert sorted(file.name for file in saved.values()) == [
        *("scene_coco.json", "scene_drawing.png", "scene_labels.png", "scene_yolo.zip")
    ]
    assert Image.open(saved["labels"]).size == (144, 176) and Image.open(saved["drawing"]).width >= 144
    assert [one["name"] for one in json.loads(saved["coco"].read_text())["categories"]] == WORDS
    assert zipfile.ZipFile(saved["yolo"]).namelist() == ["labels/scene.txt", "data.yaml"]


def test_two_visitors_never_see_each_other(visit, files, toy, scene_image):
    one, two = visit(), visit()
    segment(one, files / "scene.png")
    segment(two, files / "other.png", "brick, cyan star, grass")
    mine, theirs = legend(one), legend(two)
    one.locator("#legend button").first.click()
    one.wait_for_selector("#region:not([hidden])")
    one.fill("#new-name", "secret")
    with one.expect_response(lambda answer: answer.url.endswith("/edits")):
        one.click("#rename")
    one.wait_for_selector("#legend >> text=secret")
    with two.expect_response(lambda answer: answer.url.endswith("/paint")):
        two.locator("#granularity").fill("0.2")
    two.wait_for_timeout(200)
    assert "secret" not in two.content() and "secret" in legend(one)
    assert set(legend(two)) <= {"brick", "cyan star", "grass", "unlabelled"} and set(mine) <= set(WORDS)
    with two.expect_response(lambda answer: answer.url.endswith("/paint")):
        two.click("#granularity-auto")
    two.wait_for_timeout(200)
    assert legend(two) == theirs


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("request_of", "change"), [("/paint", "#granularity-auto"), ("/region?", "#legend button")])
def test_answers_for_an_image_before_are_not_shown(visit, files, request_of, change, lost):
    page, held = visit(), []
    segment(page, files / "scene.png")
    page.locator("#granularity").fill("0.9")
    page.wait_for_function("!document.getElementById('granularity-auto').disabled")
    page.wait_for_timeout(300)  # its own rendering
    page.route(lambda url: request_of in url, lambda route: held.append((route, route.fetch())))
    page.locator(change).first.click()
    while not held:
        page.wait_for_timeout(50)
    segment(page, files / "other.png", "brick, cyan star, grass")
    expected, size = legend(page), page.locator("#size").inner_text()
    (route, answer), *_ = held
    if lost:
        route.abort()
    else:
        route.fulfill(response=answer)
    page.wait_for_timeout(500)
    assert legend(page) == expected and page.locator("#size").inner_text() == size == "192 × 160"
    assert page.locator("#error").is_hidden() and page.locator("#region").is_hidden()


@pytest.mark.parametrize("lost", [False, True])
def test_the_region_shown_is_that_of_the_last_click(visit, files, lost):
    page, held = visit(), []
    segment(page, files / "scene.png")
    words = list(legend(page))
    page.route(lambda url: "/region?" in url, lambda route: held.append((route, route.fetch())), times=1)
    page.locator("#legend button").nth(0).click()
    while not held:
        page.wait_for_timeout(50)
    page.locator("#legend button").nth(1).click()
    page.wait_for_selector("#region:not([hidden])")
    assert page.locator("#region-word").inner_text() == words[1]
    (route, answer), *_ = held
    if lost:
        route.abort()
    else:
        route.fulfill(response=answer)
    page.wait_for_timeout(500)
    assert page.locator("#region-word").inner_text() == words[1]
    assert page.locator("#legend .chosen .word").all_inner_texts() == [words[1]]
    assert page.locator("#error").is_hidden()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("text.png", "Text.png is not an image"),
        ("damaged.jpg", "Damaged.jpg is truncated or damaged"),
        ("empty.png", "Empty.png is empty (0 bytes)"),
        ("large.png", "Large.png has 0.8 MB, and this server takes 0.3 MB"),
        ("bomb.png", "Bomb.png has more than 2 million pixels"),
    ],
)
def test_uploads_that_are_refused(visit, files, file, message):
    page = visit()
    page.set_input_files("#file", str(files / file))
    page.fill("#words", "cat")
    if file != "large.png":
        run(page)
    assert page.locator("#error").inner_text().startswith(message)
    assert page.locator("#results").is_hidden()
    segment(page, files / "scene.png")  # the page works on
    assert page.locator("#error").is_hidden() and legend(page)


def test_what_is_missing_is_said(visit, files):
    page = visit()
    page.click("#run")
    assert page.locator("#error").inner_text() == "There is no image: choose one, or an example."
    segment(page, files / "scene.png", "")
    assert "none is given" in page.locator("#error").inner_text()


def test_examples_background_and_proposers(visit):
    page = visit()
    page.locator("#examples button").first.click()
    assert page.input_value("#words") == "grass, tile"
    page.check("#background-on")
    page.fill("#background", "brick, wood")
    page.locator("#proposers label").nth(1).click()
    run(page)
    assert set(legend(page)) <= {"grass", "tile", "unlabelled"} and legend(page)


def test_a_phone(visit, files):
    page = visit(width=360, height=740, has_touch=True, is_mobile=True)
    segment(page, files / "scene.png")
    click_at(page, 0.5, 0.12)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for tag in ("#run", "#granularity", "#legend", "#masks", "#get-yolo"):
            box = page.locator(tag).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360, tag
        page.set_viewport_size({"width": 740, "height": 360})
        page.set_viewport_size({"width": 360, "height": 740})


def test_the_description_of_the_endpoint(visit, files):
    page = visit(path="/docs")
    form = page.locator("section", has_text="/segment").locator("form")
    form.locator("input[type=file]").set_input_files(str(files / "scene.png"))
    form.locator("input[name=words]").fill("grass, tile")
    with page.expect_response(lambda answer: answer.url.endswith("/segment")):
        form.locator("button").click()
    page.wait_for_selector("pre >> text=category_name")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_result_that_is_gone(visit, files, address):
    page = visit()
    segment(page, files / "scene.png")
    identifier = page.locator("#get-coco").get_attribute("href").split("/")[2]
    page.evaluate("id => fetch(`api/scenes/${id}`, { method: 'DELETE' })", identifier)
    time.sleep(0.1)
    click = page.locator("#legend button").first
    click.click()
    page.wait_for_selector("#error:not([hidden])")
    assert "segment the image again" in page.locator("#error").inner_text()
    run(page)
    assert page.locator("#error").is_hidden() and legend(page)
