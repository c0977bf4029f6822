"""What the page asks the server for: kept masks, regions, corrections, files, and each visitor's own state."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from starlette import testclient

from ovseg import Segmenter
from ovseg.errors import OvsegError
from ovseg.result.drawing import word_color
from ovseg.toy import make_scene
from ovseg.web.answers import LARGEST_SHOWN, NO_WORD, shown_image, shown_labels, shown_size
from ovseg.web.app import create_app
from ovseg.web.limits import Limits, Refused
from ovseg.web.scenes import Scene, Scenes
from ovseg.web.service import OWN, Service
from tests.web.conftest import ROOT, WORDS, encoded


@pytest.fixture(scope="module")
def client(make_service):
    with testclient.TestClient(create_app(make_service())) as client:
        yield client


def labels_of(painting: dict) -> np.ndarray:
    """The label map of the page, -1 for unlabelled pixels."""
    rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(painting["labels"].partition(",")[2])))).astype(int)
    labels = rgb[..., 0] + 256 * rgb[..., 1]
    return np.where(labels == NO_WORD, -1, labels)


def segmented(client, content: bytes, **fields) -> dict:
    answer = client.post(
        "/api/scenes", files={"image": ("scene.png", content)}, data={"words": ", ".join(WORDS)} | fields
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_about_and_examples(client):
    about = client.get("/api/about").json()
    assert [one["name"] for one in about["proposers"]] == [OWN, "BoundaryTree"] and "ade20k_150" in about["label_sets"]
    assert client.get("/api/examples/scene-9").headers["content-type"] == "image/jpeg"
    assert client.get("/api/examples/none").status_code == 404
    answer = client.post("/api/scenes", data={"example": "scene-9", "words": "grass, tile"})
    image = np.asarray(Image.open(io.BytesIO(client.get(f"/api/scenes/{answer.json()['id']}/image").content)))
    assert image.shape == make_scene(9).image.shape
    nothing = client.post("/api/scenes", data={"words": "grass"})
    assert nothing.status_code == 400 and "there is no image" in nothing.json()["error"]


@pytest.mark.parametrize("proposer", [OWN, "BoundaryTree"])
def test_renderings_are_those_of_calls_without_calling_the_networks(client, toy, calls, scene_image, content, proposer):
    segmenter = toy if proposer == OWN else toy.with_proposer(proposer)
    scene = segmented(client, content, proposer=proposer)
    assert calls.clip > 0
    expected = {None: segmenter(scene_image, WORDS)}
    expected |= {value: segmenter(scene_image, WORDS, granularity=value) for value in (0, 0.5, 1)}
    before = calls.model, calls.clip
    assert np.array_equal(labels_of(scene), expected[None].label_map)
    for granularity in (0.5, 0, 1, None):
        answer = client.post(f"/api/scenes/{scene['id']}/paint", json={"granularity": granularity}).json()
        result = expected[granularity]
        assert np.array_equal(labels_of(answer), result.label_map)
        assert [word["word"] for word in answer["words"]] == [WORDS[k] for k in result.found]
        assert [word["share"] for word in answer["words"]] == [result.fractions[k] for k in result.found]
        assert answer["words"][0]["color"] == word_color(result.found[0]).as_hex()
        assert answer["granularity"] == granularity
    assert (calls.model, calls.clip) == before
    wrong = client.post(f"/api/scenes/{scene['id']}/paint", json={"granularity": 3})
    assert wrong.status_code == 400 and "granularity is 3" in wrong.json()["error"]


def test_the_table_of_a_region_is_explain(client, toy, scene_image, content):
    explanation = toy(scene_image, WORDS, explain=True).explain().to_json()
    scene = segmented(client, content)
    labels, seen = labels_of(scene), 0
    for x, y in ((0.5, 0.5), (0.1, 0.1), (0.9, 0.6), (0, 0), (1, 1)):
        region = client.get(f"/api/scenes/{scene['id']}/region", params={"x": x, "y": y}).json()
        row, column = min(int(y * labels.shape[0]), labels.shape[0] - 1), min(int(x * labels.shape[1]), 143)
        assert region["label"] == labels[row, column] and region["word"] == WORDS[labels[row, column]]
        for mask in region["masks"]:
            number = mask.pop("mask")
            assert mask == json.loads(json.dumps(explanation[number]))
            seen += 1
    assert seen > 5
    by_word = client.get(f"/api/scenes/{scene['id']}/region", params={"label": scene["words"][0]["label"]}).json()
    assert by_word["word"] == scene["words"][0]["word"] and 0 < by_word["x"] < 1
    assert client.get(f"/api/scenes/{scene['id']}/region", params={"label": 99}).status_code == 400
    assert client.get(f"/api/scenes/{scene['id']}/region", params={"x": 2}).status_code == 400


def test_corrections_survive_the_slider_and_can_be_taken_back(client, content):
    scene = segmented(client, content)
    address, first, labels = f"/api/scenes/{scene['id']}", scene["words"][0], labels_of(scene)
    region = client.get(f"{address}/region", params={"label": first["label"]}).json()
    place = {"x": region["x"], "y": region["y"]}
    renamed = client.post(f"{address}/edits", json=place | {"name": " lawn ", "whole_word": True}).json()
    assert "lawn" in [word["word"] for word in renamed["words"]] and first["word"] in renamed["absent"]
    new = labels_of(renamed)
    assert np.array_equal(new == len(WORDS), labels == first["label"])
    assert np.array_equal(np.where(new == len(WORDS), first["label"], new), labels)
    lawn = next(word for word in renamed["words"] if word["word"] == "lawn")
    assert lawn["score"] == pytest.approx(first["score"], rel=1e-4)
    slid = client.post(f"{address}/paint", json={"granularity": 0.2}).json()
    assert first["word"] in slid["absent"] and "lawn" in [word["word"] for word in slid["words"]]
    client.post(f"{address}/paint", json={})
    dropped = client.post(f"{address}/edits", json=place | {"name": None}).json()
    gone = (labels_of(dropped) == -1).mean()
    assert gone == pytest.approx(dropped["unlabelled"]) and 0 < gone <= first["share"]
    back = client.post(f"{address}/edits", json=place | {"name": "GRASS"}).json()  # an unlabelled region, a known word
    assert back["unlabelled"] == pytest.approx(0) and len(back["names"]) == len(WORDS) + 1
    assert back["edits"] == 3
    assert np.array_equal(labels_of(client.delete(f"{address}/edits").json()), labels_of(dropped))
    assert np.array_equal(labels_of(client.delete(f"{address}/edits", params={"all": True}).json()), labels)
    for change in ({"name": " "}, {"name": "a\x07b"}, {"name": "x" * 201}, {"x": 7}, {"x": "left"}):
        assert client.post(f"{address}/edits", json=place | change).status_code == 400


def test_downloads(client, content, scene_image):
    scene = segmented(client, content)
    address = f"/api/scenes/{scene['id']}"
    client.post(f"{address}/edits", json={"x": 0.5, "y": 0.5, "name": "lawn", "whole_word": True})
    labels = labels_of(client.post(f"{address}/paint", json={}).json())
    files = {kind: client.get(f"{address}/files/{kind}") for kind in ("drawing", "labels", "coco", "yolo")}
    names = [answer.headers["content-disposition"].partition("''")[2] for answer in files.values()]
    assert names == ["scene_drawing.png", "scene_labels.png", "scene_coco.json", "scene_yolo.zip"]
    assert Image.open(io.BytesIO(files["drawing"].content)).width >= scene_image.shape[1]
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(files["labels"].content))), np.where(labels < 0, 255, labels)
    )
    coco = files["coco"].json()
    assert coco["categories"][-1]["name"] == "lawn" and coco["images"][0]["file_name"] == "scene.png"
    assert sum(one["area"] for one in coco["annotations"]) == (labels >= 0).sum()
    archive = zipfile.ZipFile(io.BytesIO(files["yolo"].content))
    assert archive.namelist() == ["labels/scene.txt", "data.yaml"]
    assert '4: "lawn"' in archive.read("data.yaml").decode()
    assert len(archive.read("labels/scene.txt").decode().splitlines()) == len(coco["annotations"])
    assert client.get(f"{address}/files/exe").status_code == 404


def test_images_have_the_size_of_their_label_map():
    image = np.zeros((1281, 1536, 3), np.uint8)
    for side in (LARGEST_SHOWN, 320):
        shown = Image.open(io.BytesIO(shown_image(image, side)))
        assert shown.size == shown_size(1281, 1536, side) and max(shown.size) == side
    assert shown_labels(image[..., 0].astype(np.int32)).shape[::-1] == (1280, 1068)
    assert shown_size(30, 20) == (20, 30)


def test_each_visitor_has_scenes_of_his_own(client, content):
    first, second = segmented(client, content), segmented(client, encoded(make_scene(9).image))
    assert first["id"] != second["id"] and len(first["id"]) >= 20
    address = f"/api/scenes/{second['id']}"
    untouched = labels_of(second)
    client.post(f"/api/scenes/{first['id']}/edits", json={"x": 0.5, "y": 0.5, "name": "mine", "whole_word": True})
    client.post(f"/api/scenes/{first['id']}/paint", json={"granularity": 1})
    after = client.post(f"{address}/paint", json={}).json()
    assert np.array_equal(labels_of(after), untouched) and after["names"] == WORDS
    again = segmented(client, content, before=first["id"])  # replaces the visitor's own
    assert client.get(f"/api/scenes/{first['id']}/image").status_code == 404
    gone = client.post(f"/api/scenes/{first['id']}/paint", json={})
    assert gone.status_code == 404 and "segment the image again" in gone.json()["error"]
    assert client.delete(f"/api/scenes/{again['id']}").status_code == 200
    assert client.get(f"/api/scenes/{again['id']}/image").status_code == 404
    assert client.get(f"{address}/image").status_code == 200


def test_scenes_expire_and_memory_is_bounded(toy, scene_image):
    def scene() -> Scene:
        return Scene(toy.adjustable(scene_image, WORDS), "a.png")

    size, now = scene().nbytes, [0.0]
    scenes = Scenes(Limits(idle=60, memory=int(2.5 * size)), clock=lambda: now[0])
    names = [scenes.add(scene())]
    now[0] = 50
    names.append(scenes.add(scene()))
    now[0] = 70
    with pytest.raises(Refused, match="not kept any longer"):
        scenes.get(names[0])
    scenes.get(names[1])
    now[0] = 120
    names += [scenes.add(scene())]
    scenes.get(names[1])  # used again: the other one goes first
    names += [scenes.add(scene())]
    assert len(scenes) == 2
    scenes.get(names[1])
    with pytest.raises(Refused):
        scenes.get(names[2])
    names += [scenes.add(scene(), before=names[-1])]  # another visitor's is not in its way
    scenes.get(names[1])
    with pytest.raises(Refused):
        scenes.get(names[3])
    now[0] = 500
    scenes.expire()
    assert len(scenes) == 0
    with pytest.raises(Refused, match="more than this server keeps") as refused:
        Scenes(Limits(memory=1000)).add(scene())
    assert refused.value.status == 413


def test_edits_are_counted_and_limited(toy, scene_image, monkeypatch):
    monkeypatch.setattr("ovseg.web.scenes.MOST_EDITS", 3)
    scene = Scene(toy.adjustable(scene_image, WORDS), "a.png")
    assert scene.nbytes > scene.found.nbytes + scene.found.mask_scores.own.nbytes + scene.shown.label_map.nbytes
    for number in range(3):
        size = scene.nbytes
        scene.edit(0.5, 0.5, f"{number}" * 200, whole_word=True)
        assert scene.nbytes >= size + 200
    with pytest.raises(OvsegError, match="this result has 3 corrections, the most that are kept: take some back"):
        scene.edit(0.5, 0.5, "a", whole_word=True)
    scene.undo()
    scene.edit(0.5, 0.5, "a", whole_word=True)


def test_a_model_without_masks(scene_image, content):
    config = ROOT / "configs" / "toy" / "dense_clip_toy.yaml"
    dense = Segmenter.from_config(config, opts={"MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none"}, device="cpu")
    with testclient.TestClient(create_app(Service({OWN: dense}))) as client:
        scene = segmented(client, content)
        assert not scene["keeps_masks"]
        assert np.array_equal(labels_of(scene), dense(scene_image, WORDS).label_map)
        address = f"/api/scenes/{scene['id']}"
        region = client.get(f"{address}/region").json()
        assert region["masks"] == [] and region["word"] in WORDS
        assert client.post(f"{address}/paint", json={"granularity": 0.5}).status_code == 400
        limited = client.post(f"{address}/paint", json={"min_score": 1e9}).json()
        assert limited["unlabelled"] == 1
        changed = client.post(f"{address}/edits", json={"x": 0.5, "y": 0.5, "name": "thing", "whole_word": True})
        assert changed.json()["names"][-1] == "thing"
        assert client.get(f"{address}/files/coco").status_code == 200
