from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovseg.data import catalog
from ovseg.data.benchmarks import DATASETS
from ovseg.data.check import check_dataset, choose_pairs, open_subject
from ovseg.errors import OvsegError
from ovseg.result.drawing import word_color
from tests.scripts import REPO, load_script

tool = load_script("tools/check_dataset.py")

DESCRIPTION = {
    "images": "images",
    "masks": "masks",
    "names": "names.txt",
    "classes": ["sky", "sea", "sand", "boat"],  # there is no boat
}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def clean(tmp_path) -> Path:
    """Six images of sky, sea and sand with nothing wrong; the YAML file."""
    rng = np.random.default_rng(2)
    for index in range(6):
        mask = np.repeat(np.array([[0, 1, 1, 2, 255]], np.uint8).T, 30, axis=1).repeat(8, axis=0)
        save(tmp_path / f"images/{index}.jpg", rng.integers(0, 255, (40, 30, 3)).astype(np.uint8))
        save(tmp_path / f"masks/{index}.png", mask)
    content = {key: value for key, value in DESCRIPTION.items() if key != "names"}
    (tmp_path / "beach.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "beach.yaml"


def plant_faults(folder: Path) -> dict[str, str]:
    """Nine different ones; gives the file of each by the kind of the finding that is due."""
    (folder / "names.txt").write_text("\n".join([*"0123456789", "lost", "alone", "ignored", "turned"]))
    (folder / "beach.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    image, mask = np.zeros((40, 30, 3), np.uint8), np.zeros((40, 30), np.uint8)
    save(folder / "images/6.jpg", image)
    save(folder / "masks/alone.png", mask)
    (folder / "images/7.jpg").touch()
    save(folder / "masks/7.png", mask)
    save(folder / "images/8.jpg", image)
    save(folder / "masks/8.png", np.random.default_rng(0).integers(0, 3, (40, 30)).astype(np.uint8))
    whole = (folder / "masks/8.png").read_bytes()
    (folder / "masks/8.png").write_bytes(whole[: len(whole) // 2])
    save(folder / "images/9.jpg", image)
    save(folder / "masks/9.png", mask[:, :-1])
    wrong = mask.copy()
    wrong[:3, :7], wrong[9, :5] = 9, 200
    save(folder / "masks/5.png", wrong)
    save(folder / "images/ignored.jpg", image)
    save(folder / "masks/ignored.png", mask + 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    Image.fromarray(image).save(folder / "images/turned.jpg", exif=exif)
    save(folder / "masks/turned.png", mask)
    return {
        "image_without_labels": "images/6.jpg",
        "labels_without_image": "masks/alone.png",
        "not_there": "lost",
        "bad_image": "images/7.jpg",
        "bad_labels": "masks/8.png",
        "size": "masks/9.png masks/turned.png",
        "unlisted": "masks/5.png",
        "ignored_class": "beach.yaml",
        "rare": "beach.yaml",
        "all_ignored": "masks/ignored.png",
    }


def test_every_planted_fault_is_found_with_its_file(clean, tmp_path, capsys):
    faults = plant_faults(tmp_path)
    assert tool.main([str(clean), "--json", str(tmp_path / "found.json"), "--workers", "3"]) == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["ok"]
    due = sorted((kind, file) for kind, files in faults.items() for file in files.split())
    listed = sorted((finding["kind"], finding["file"].removeprefix(f"{tmp_path}/")) for finding in found["findings"])
    assert listed == due
    printed = capsys.readouterr().out
    for finding in found["findings"]:
        assert finding["file"] in finding["message"]
        assert finding["message"] in printed
    messages = {finding["file"].removeprefix(f"{tmp_path}/"): finding["message"] for finding in found["findings"]}
    assert "has 29x40 pixels, but its image" in messages["masks/9.png"] and "30x40" in messages["masks/9.png"]
    assert "EXIF" in messages["masks/turned.png"] and "EXIF" not in messages["masks/9.png"]
    assert "empty (0 bytes)" in messages["images/7.jpg"]
    assert messages["masks/5.png"].endswith("has value 9 (21 pixels), value 200 (5 pixels)")
    file = str(tmp_path / "masks/5.png")
    assert {value: (entry["pixels"], entry["files"]) for value, entry in found["unlisted"].items()} == {
        "value 9": (21, [file]),
        "value 200": (5, [file]),
    }
    assert f"value 9: 21 pixels in {file}" in printed
    assert "WRONG" in printed and "never: boat" in printed


def test_the_histogram_counts_every_pixel(clean, tmp_path):
    report = check_dataset(open_subject(str(clean)), workers=2)
    assert [finding.kind for finding in report.findings] == [
        "ignored_class"
    ] and not report.unlisted  # there is no boat
    strip = 6 * 30 * 8
    assert report.pixels.tolist() == [strip, 2 * strip, strip, 0]
    assert report.images.tolist() == [6, 6, 6, 0]
    assert (report.ignored, report.never) == (strip, ["boat"])
    plant_faults(tmp_path)
    one, several = (check_dataset(open_subject(str(clean)), workers=n).as_dict() for n in (1, 4))
    assert one == several  # whatever thread is first


def test_a_clean_data_set_is_told_so(clean, tmp_path, capsys):
    assert tool.main([str(clean)]) == 0
    assert "6 pairs of image and labels, 6 checked; nothing is wrong" in capsys.readouterr().out
    save(tmp_path / "masks/0.png", np.full((40, 30), 255, np.uint8))
    assert tool.main([str(clean), "--json", "-"]) == 0  # a note is no fault
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] and [finding["kind"] for finding in content["findings"]] == ["ignored_class", "all_ignored"]
    assert content["classes"][3] == {"name": "boat", "pixels": 0, "images": 0}
    (tmp_path / "beach.yaml").write_text(yaml.safe_dump({**yaml.safe_load(clean.read_text()), "first_id": 254}))
    assert tool.main([str(clean)]) == 1  # the values are described wrongly
    assert f"no pixel of {clean} has a class" in capsys.readouterr().out


def test_a_limit_spreads_over_the_data_set(clean, capsys):
    assert check_dataset(open_subject(str(clean)), limit=3).checked == (0, 2, 4)
    assert len(check_dataset(open_subject(str(clean)), limit=99).checked) == 6
    with pytest.raises(OvsegError, match="--limit is 0"):
        tool.main([str(clean), "--limit", "0"])


def test_the_sheet_shows_all_classes_and_what_is_in_none(clean, tmp_path, capsys):
    plant_faults(tmp_path)
    boat = np.zeros((40, 30), np.uint8)
    boat[:20] = 3
    save(tmp_path / "masks/4.png", boat)
    subject = open_subject(str(clean))
    report = check_dataset(subject)
    pairs = [subject.pairing.pairs[index].name for index in choose_pairs(report, 3)]
    assert pairs == ["0", "4", "5"]  # three classes, the fourth, values outside the list
    assert [subject.pairing.pairs[index].name for index in choose_pairs(report, 1)] == ["5"]
    drawable = {subject.pairing.pairs[index].name for index in choose_pairs(report, 99)}
    assert drawable == {*"012345", "ignored"}
    assert tool.main([str(clean), "--sheet", str(tmp_path / "sheet.png"), "--sheet-images", "3"]) == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        wide, high = sheet.size
        colors = {color for _, color in sheet.convert("RGB").getcolors(wide * high)}
    assert wide > 1000 and high > 300
    assert {word_color(index).as_rgb() for index in range(5)} <= colors  # the legend: four classes, and the rest
    for pair in subject.pairing.pairs:
        pair.labels.write_bytes(b"")
    with pytest.raises(OvsegError, match=r"no pair of .*beach\.yaml can be drawn"):
        tool.main([str(clean), "--sheet", str(tmp_path / "none.png")])


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """ADE20K-150's validation set with two images, registered in an empty catalog."""
    dataset = next(entry for entry in DATASETS if entry.name == "ade20k_sem_seg_val")
    before, metadata = DatasetCatalog[dataset.name], MetadataCatalog.get(dataset.name).as_dict()
    DatasetCatalog.pop(dataset.name)
    MetadataCatalog.pop(dataset.name)
    for name in "ab":
        save(tmp_path / dataset.images / f"{name}.jpg", np.zeros((4, 5, 3), np.uint8))
        save(tmp_path / dataset.labels / f"{name}.png", np.full((4, 5), 149, np.uint8))
    catalog.register_all(tmp_path)
    yield dataset
    DatasetCatalog.pop(dataset.name)
    MetadataCatalog.pop(dataset.name)
    DatasetCatalog.register(dataset.name, before)
    MetadataCatalog.get(dataset.name).set(**{key: value for key, value in metadata.items() if key != "name"})


def test_benchmarks_are_checked_by_their_names(benchmark, tmp_path, capsys):
    save(tmp_path / benchmark.images / "of_another_split.jpg", np.zeros((4, 5, 3), np.uint8))
    assert tool.main([benchmark.name]) == 0
    save(tmp_path / benchmark.labels / "b.png", np.array([[0, 150, 255]], np.uint8))
    save(tmp_path / benchmark.labels / "orphan.png", np.zeros((4, 5), np.uint8))
    (tmp_path / benchmark.labels / "a.png").write_bytes(b"x")
    assert tool.main([benchmark.name]) == 1
    printed = capsys.readouterr().out
    for part in ("orphan.png has no image", "a.png cannot be read", "b.png has value 150 (1 pixels)", "3x1 pixels"):
        assert part in printed


def test_data_sets_without_semantic_labels_are_refused():
    name = "check_dataset_test"
    DatasetCatalog.register(name, lambda: [{"file_name": "a.jpg"}])
    MetadataCatalog.get(name).set(stuff_classes=["a"])
    try:
        with pytest.raises(OvsegError, match=r"has no semantic labels, for example of a\.jpg"):
            open_subject(name)
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def test_exit_status_of_the_command_line(clean, tmp_path, capsys, monkeypatch):
    def status(*arguments):
        monkeypatch.setattr(sys, "argv", ["check_dataset.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(REPO / "tools/check_dataset.py"), run_name="__main__")
        return left.value.code

    assert status(clean, "--limit", 1) == 0
    (tmp_path / "masks/0.png").unlink()
    assert status(clean) == 1
    capsys.readouterr()
    assert status(tmp_path / "nothing.yaml") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: there is no data set file") and printed.err.count("\n") == 1
