"""Training of the region model on made-up photographs with panoptic labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ovseg.adaptation.regions import measure, predict, read_regions, train_regions
from ovseg.data.custom.description import read_description
from ovseg.data.custom.source import open_source
from ovseg.errors import OvsegError
from ovseg.naming.region_model import RegionModel, load_regions
from tests.scripts import load_script
from tests.tiny_clip import adapter_of, convolutional_cfg

CATEGORIES = {5: "cat", 9: "sky", 11: "grass", 20: "never seen"}
COLOURS = {5: (200, 120, 40), 9: (90, 140, 240), 11: (40, 160, 60)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six images of a block on stripes of two colours, in COCO's panoptic layout; returns the YAML file."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "panoptic").mkdir()
    images, annotations = [], []
    for number in range(6):
        ids = np.full((72, 96), 1)
        ids[40 + 2 * number :] = 2
        ids[20:50, 10 + 8 * number : 40 + 8 * number] = 70_000
        kinds = {1: 9, 2: 11, 70_000: 5}
        pixels = random.integers(-20, 20, (72, 96, 3))
        for segment, kind in kinds.items():
            pixels[ids == segment] += COLOURS[kind]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{number}.png")
        coded = np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)
        Image.fromarray(coded).save(folder / f"panoptic/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 72, "width": 96})
        infos = [{"id": segment, "category_id": kind} for segment, kind in kinds.items()]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    described = {"images": "images/*.png", "coco_panoptic": "panoptic.json"}
    (folder / "world.yaml").write_text(yaml.safe_dump(described))
    return folder / "world.yaml"


@pytest.fixture(scope="module")
def small_images():
    with pytest.MonkeyPatch.context() as patch:
        for module in ("ovseg.adaptation.regions", "ovseg.naming.region_model", "ovseg.naming.pooled"):
            patch.setattr(f"{module}.SIZE", 128)
        yield


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return convolutional_cfg(tmp_path_factory.mktemp("clip"), "TrainedRegions")


def test_segments_are_read(world, cfg, small_images):
    source = open_source(read_description(world))
    regions = read_regions(adapter_of(cfg), source)
    assert len(regions) == 18
    assert regions.classes.tolist() == [1, 2, 0] * 6
    assert regions.images.tolist() == [number for number in range(6) for _ in range(3)]
    assert regions.areas[2] == 900
    assert regions.features.shape == (18, sum(regions.widths) + 19)
    part = regions[regions.classes == 0]
    assert len(part) == 6
    assert part.widths == regions.widths


def test_the_tool_trains_evaluates_and_writes(world, cfg, small_images, tmp_path, monkeypatch, caplog):
    tool = load_script("tools/train_photo_model.py")
    clip = adapter_of(cfg)
    random = torch.Generator().manual_seed(0)
    classifier = torch.randn(1000, 1280, generator=random) / 40, torch.zeros(1000)
    monkeypatch.setattr(tool, "imagenet_classifier", lambda: classifier)
    monkeypatch.setattr(tool, "load_cfg", lambda name: cfg)
    monkeypatch.setattr(tool, "ClipAdapter", lambda cfg: clip)
    out = tmp_path / "regions.safetensors"
    caplog.set_level("INFO")
    tool.main(["--train", str(world), "--val", str(world), "--output", str(out), "--evaluate"])
    assert "world.yaml: top-1 100.0" in caplog.text
    assert "cross-validated over photographs: top-1" in caplog.text
    model, words = load_regions(str(out))
    assert words == (("cat",), ("sky",), ("grass",))  # only those with a segment
    again = tmp_path / "again.safetensors"
    tool.main(["--train", str(world), "--output", str(again)])
    assert out.read_bytes() == again.read_bytes()

    source = open_source(read_description(world))
    names = tool.embed_names(clip, source.classes.vocabulary)
    regions = read_regions(clip, source)
    state = train_regions(regions, names, classifier)
    assert all(torch.equal(tensor.float(), getattr(model, name).float()) for name, tensor in state.items())
    logits = predict(RegionModel(state), regions, names)
    assert logits.shape == (18, 4)
    assert logits.isfinite().all()
    assert measure(logits, regions)["top-1"] == 100


def test_measures_count_segments_and_pixels(world, cfg, small_images):
    regions = read_regions(adapter_of(cfg), open_source(read_description(world)))[torch.tensor([0, 1, 2])]
    logits = torch.eye(4)[[1, 1, 0]]  # sky and the block are right, grass is called sky
    found = measure(logits, regions)
    sky, grass, block = regions.areas.double()
    assert found["top-1"] == pytest.approx(200 / 3)
    assert found["pixels"] == pytest.approx(float(100 * (sky + block) / regions.areas.sum()))
    assert found["mIoU"] == pytest.approx(float(100 * (sky / (sky + grass) + 0 + 1) / 3))


def test_other_layouts_are_refused(tmp_path, cfg, world):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    described = {"images": str(world.parent / "images/*.png"), "masks": str(world.parent / "images/*.png")}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(described | {"classes": ["a", "b"]}))
    source = open_source(read_description(tmp_path / "other.yaml"))
    with pytest.raises(OvsegError, match="is not a panoptic data set: give one with coco_panoptic"):
        read_regions(adapter_of(cfg), source)
