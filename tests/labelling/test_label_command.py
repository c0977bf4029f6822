"""``ovseg label``: formats, resuming, failures, several processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.cli.app import main
from ovseg.labelling import records
from ovseg.result.formats import FORMATS
from ovseg.segmenter import Segmenter
from tests.labelling.stand_in import WORDS, Bands, save_images
from tests.processes import CONTEXT
from tests.result.format_readers import agreements, read_coco_instances, read_png, read_yolo

COMMAND = ["label", "photos", "--words", "words.txt", "--model", "toy", "--output", "out", "--min-area", "0"]
EXACT = [*COMMAND, "--tolerance", "0"]


@pytest.fixture
def bands(monkeypatch, here):
    (here / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return stand_in(monkeypatch)


def stand_in(patch, seconds: float = 0.0) -> Bands:
    segmenter = Bands(seconds)
    patch.setattr(Segmenter, "from_config", classmethod(lambda cls, *args, **kwargs: segmenter))
    return segmenter


def manifest() -> dict:
    return json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))


def test_all_formats_at_once(here, bands, capfd):
    save_images(here / "photos")
    assert main([*EXACT, "--format", ",".join(FORMATS)]) == 0
    expected = read_png(here / "out" / "png")
    for name, labels in expected.items():
        grey = np.asarray(Image.open(here / "photos" / f"{name}.png"))[:, :, 0].astype(int)
        assert np.array_equal(labels, np.where(grey < 64, -1, np.clip(grey // 64 - 1, 0, 2)))
    assert len(expected) == 3
    folders = {"coco-instances": "annotations.json", "fiftyone": "labels.json"}
    for folder, file in folders.items():
        assert set(agreements(read_coco_instances(here / "out" / folder, file), expected).values()) == {1.0}
    assert min(agreements(read_yolo(here / "out" / "yolo-seg"), expected).values()) > 0.4  # OpenCV draws edges, too
    assert main(["check", "out/png/dataset.yaml"]) == 0  # a data set of ours
    assert (here / "out" / "yolo-seg" / "images" / "000.png").is_symlink()
    assert Image.open(here / "out" / "contact_sheet.jpg").width == 1840
    written = manifest()
    assert [image["image"] for image in written["images"]] == ["000.png", "001.png", "002.png"]
    assert written["images"][0]["status"] == "labelled" and written["words"] == list(WORDS)
    out = capfd.readouterr().out
    assert "3 of 3 labelled" in out and "touching objects of one word are one region" in out


def test_another_format_needs_no_model(here, bands):
    save_images(here / "photos")
    assert main([*COMMAND, "--format", "png"]) == 0 and bands.calls == 3
    assert main([*COMMAND, "--format", "cvat", "-f", "labelme", "--min-area", "0.05"]) == 0 and bands.calls == 3
    few = json.loads((here / "out" / "labelme" / "000.json").read_text(encoding="utf-8"))["shapes"]
    assert few and len(few) < manifest()["images"][0]["regions"]


def test_a_broken_image_is_kept_with_its_reason(here, bands, capfd):
    paths = save_images(here / "photos", 4)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:100])
    assert main([*COMMAND, "--format", "coco-instances"]) == 1
    images = manifest()["images"]
    assert [image["status"] for image in images] == ["labelled", "failed", "labelled", "labelled"]
    assert "truncated or damaged" in images[1]["reason"]
    assert "001.png is truncated or damaged" in capfd.readouterr().err
    coco = json.loads((here / "out" / "coco-instances" / "annotations.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in coco["images"]] == ["000.png", "002.png", "003.png"]
    paths[1].write_bytes(whole)  # repaired: done again, the others not
    assert main([*COMMAND, "--format", "coco-instances"]) == 0 and bands.calls == 4


def test_a_changed_image_is_labelled_again(here, bands):
    paths = save_images(here / "photos")
    assert main([*COMMAND, "--format", "png"]) == 0
    Image.fromarray(np.full((36, 48, 3), 100, np.uint8)).save(paths[0])
    assert main([*COMMAND, "--format", "png"]) == 0 and bands.calls == 4
    assert (read_png(here / "out" / "png")["000"] == 0).all()


def test_batches_give_the_same_records(here, bands):
    save_images(here / "photos", 7)
    lines = []
    for size in ("1", "3"):
        assert main([*COMMAND, "--format", "png", "--batch-size", size, "--output", size]) == 0
        lines.append((here / size / "records-0.jsonl").read_text())
    assert lines[0] == lines[1] and bands.calls == 7 + 3


def label_slowly(folder: str) -> None:
    os.chdir(folder)
    os.setpgrp()
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, 0.05)
        os._exit(main([*EXACT, "--format", "png,coco-instances"]))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_goes_on_after_an_end_at_any_time(here, bands, how):
    save_images(here / "photos", 40)
    process = CONTEXT.Process(target=label_slowly, args=(str(here),))
    process.start()
    file = here / "out" / "records-0.jsonl"
    until = time.monotonic() + 120
    while (not file.exists() or file.read_bytes().count(b"\n") < 5) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.join(60)
    done = file.read_bytes().count(b"\n")
    assert 5 <= done < 40 and process.exitcode == (-9 if how == signal.SIGKILL else 130)
    assert not (here / "out" / "png").exists()
    with file.open("ab") as opened:
        opened.write(b'{"image": "unfin')  # as of a full disk
    assert main([*EXACT, "--format", "png,coco-instances"]) == 0 and bands.calls == 40 - done
    assert len(file.read_text().splitlines()) == 40
    expected = read_png(here / "out" / "png")
    assert len(expected) == 40
    assert set(agreements(read_coco_instances(here / "out" / "coco-instances"), expected).values()) == {1.0}


def test_records_survive_damage(here, bands):
    save_images(here / "photos")
    assert main([*COMMAND, "--format", "png"]) == 0
    file = here / "out" / "records-0.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "[]", '{"image": 3, "stamp": null}', lines[2][:50], lines[1]]))
    assert main([*COMMAND, "--format", "png"]) == 0 and bands.calls == 3 + 2  # the last line had no end
    assert len(records.read_index(here / "out", (here / "photos").iterdir(), 3)) == 3


def test_images_of_a_folder_above(here, bands, monkeypatch):
    save_images(here / "photos")
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    command = ["label", "../photos", "--words", "../words.txt", "--model", "toy", "--format", "png"]
    assert main(command) == 0 and bands.calls == 3
    assert main(command) == 0 and bands.calls == 3


def test_files_of_images_that_are_gone_are_removed(here, bands):
    paths = save_images(here / "photos", 4)
    command = [*COMMAND, "--format", "png,labelme,yolo-seg,fiftyone,coco-panoptic"]
    assert main(command) == 0
    own = here / "out" / "png" / "masks" / "own.png"
    own.write_bytes(b"of the user")
    paths[0].unlink()
    paths[1].write_bytes(b"damaged")
    paths[2].rename(here / "photos" / "new.png")
    assert main([*COMMAND, "--format", "cvat"]) == 1  # does not forget the files of other formats
    assert main(command) == 1
    places = ("png/masks", "labelme", "yolo-seg/labels", "yolo-seg/images", "fiftyone/data", "coco-panoptic/panoptic")
    for place in places:
        found = {path.stem for path in (here / "out" / place).iterdir() if path != own}
        assert found == {"003", "new"}, place
    assert own.exists()


def test_a_pattern_that_finds_the_output_too(here, bands, capfd):
    save_images(here / "photos")
    command = ["label", "**/*.*g", *COMMAND[2:], "--format", "yolo-seg,png"]
    for _ in range(2):  # out comes before photos
        assert main(command) == 0 and bands.calls == 3
    assert len(manifest()["images"]) == 3 and "images in out, the output folder, are left out" in capfd.readouterr().out
    for argument in ("out", "out/yolo-seg/images"):
        with pytest.raises(SystemExit):
            main(["label", argument, *COMMAND[2:], "--format", "png"])
        err = capfd.readouterr().err
        assert "choose another --output" in err and len(err.strip().splitlines()) == 1


def test_settings_that_are_no_object(here, bands, capfd):
    save_images(here / "photos", 1)
    assert main([*COMMAND, "--format", "png"]) == 0
    (here / "out" / "settings.json").write_text("[]")
    with pytest.raises(SystemExit):
        main([*COMMAND, "--format", "png"])
    err = capfd.readouterr().err
    assert "settings.json is missing or damaged" in err and len(err.strip().splitlines()) == 1


def test_checks_come_before_the_model_is_fetched(here, bands, monkeypatch, capfd):
    monkeypatch.setattr("ovseg.hub.opening.located", lambda *args: pytest.fail("fetched"))
    for arguments in (["photos", "--format", "coco"], ["photos", "--format", "png"]):  # no such folder
        with pytest.raises(SystemExit):
            main(["label", *arguments, "--words", "cat", "--model", "auto"])
    err = capfd.readouterr().err
    assert "is not a label format" in err and "there is no image to label" in err


def test_the_name_of_the_model_is_kept(here, bands):
    save_images(here / "photos", 1)
    assert main([*COMMAND, "--format", "label-studio"]) == 0
    tasks = json.loads((here / "out" / "label-studio" / "tasks.json").read_text(encoding="utf-8"))
    assert manifest()["model"] == "toy" == tasks[0]["predictions"][0]["model_version"]
    kept = manifest()["settings"]
    assert len(kept["config"]) == 64 and kept["ovseg"] and kept["weights"] and "words" not in kept


WRONG = {
    "no format": ([], "--format is missing: give one or more of coco-instances"),
    "a format that is none": (["--format", "coco"], "--format 'coco' is not a label format: choose among coco-inst"),
    "no words": (["--words", "", "--format", "png"], "--words"),
    "an empty folder": (["--format", "png", "empty"], "there is no image to label"),
    "a negative area": (["--format", "png", "--min-area", "-1"], "--min-area is -1: give pixels"),
    "an area that is not a number": (["--format", "png", "--min-area", "nan"], "--min-area is nan: give a number"),
    "a negative tolerance": (["--format", "png", "--tolerance", "-2"], "--tolerance is -2: give pixels"),
    "a batch of none": (["--format", "png", "--batch-size", "0"], "equal to 1 ("),
    "a key without a value": (["--format", "png", "--set", "SEED"], "is not KEY=VALUE"),
    "a web address": (["--format", "png", "http://a/b.jpg"], "is a web address"),
    "no such model": (["--format", "png", "--model", "absent.yaml"], "absent.yaml"),
    "no such file of words": (["--format", "png", "--words", "absent.txt"], "absent.txt"),
}


@pytest.mark.parametrize("arguments, sentence", WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_answered_in_one_sentence(here, bands, capfd, arguments, sentence):
    save_images(here / "photos", 1)
    (here / "empty").mkdir()
    inputs = [name for name in arguments if name == "empty"] or ["photos"]
    command = ["label", *inputs, *(() if "--words" in arguments else ("--words", "words.txt")), "--output", "out"]
    try:
        status = main([*command, *(name for name in arguments if name != "empty")])
    except SystemExit as error:
        status = error.code
    err = capfd.readouterr().err
    assert status == 2 and sentence in err and "Traceback" not in err and len(err.strip().splitlines()) == 1, err
    assert not list(here.glob("out/records*"))


def test_other_words_need_another_folder(here, bands, capfd):
    save_images(here / "photos", 1)
    assert main([*COMMAND, "--format", "png"]) == 0
    (here / "words.txt").write_text("dog")
    with pytest.raises(SystemExit):
        main([*COMMAND, "--format", "png"])
    assert "was made with other settings" in capfd.readouterr().err.replace("that were", "was")


def test_names_that_differ_by_the_suffix_only(here, bands, capfd):
    save_images(here / "photos", 1)
    Image.open(here / "photos" / "000.png").save(here / "photos" / "000.bmp")
    assert main([*COMMAND, "--format", "png"]) == 1
    assert "has the name of 000.bmp without its suffix: rename one of them" in capfd.readouterr().err


def test_two_processes(here):
    """With the smallest shipped model, since a spawned process has no stand-in."""
    save_images(here / "photos", 4, (48, 48))
    command = ["label", "photos", "--words", "sky, cat", "--model", "toy", "--format", "png", "--device", "cpu"]
    assert main([*command, "--processes", "2", "--output", "out"]) == 0
    assert [len((here / "out" / f"records-{k}.jsonl").read_text().splitlines()) for k in range(2)] == [2, 2]
    assert main([*command, "--output", "one"]) == 0
    for name, labels in read_png(here / "one" / "png").items():
        assert np.array_equal(labels, read_png(here / "out" / "png")[name])
