"""The engine of the preparation scripts: what is done again, what is not, and what happens when something breaks."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.data.prepare import Conversion, Item, class_table, convert, label_output, read_labels_of, stamps
from ovseg.data.prepare import conversion as conversion_module
from ovseg.data.prepare.conversion import MOST_BAD, spread
from ovseg.data.prepare.stamps import NAME
from ovseg.errors import OvsegError
from ovseg.io.files import find_leftovers
from tests.data.prepared import copy_miniature, load, prepare, save, snapshot

IN = "ADEChallengeData2016/annotations/validation"
OUT = "ADEChallengeData2016/annotations_detectron2/validation"


def many(root: Path, number: int = 12) -> list[Item]:
    for index in range(number):
        save(root / f"raw/{index:02d}.png", np.full((3, 4), index, np.uint8))
    return [Item(path.stem, (path,)) for path in sorted((root / "raw").glob("*.png"))]


def conversion(root: Path, items: list[Item], **options) -> Conversion:
    output = label_output(root / "out", class_table("pascal_voc_20", 21, void=255), **options)
    return Conversion("test", items, read_labels_of, [output], len(items))


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_any_number_of_workers_gives_the_same(workers, tmp_path):
    items = many(tmp_path)
    assert convert(conversion(tmp_path, items), workers) == 12
    assert [load(tmp_path / f"out/{index:02d}.png")[0, 0] for index in range(12)] == [255, *range(11)]
    assert convert(conversion(tmp_path, items), workers) == 0


def test_what_is_done_again(tmp_path, capsys):
    root = copy_miniature("ade20k_150", tmp_path)
    prepare("ade20k_150", root)
    names = ["ADE_val_00000001.png", "ADE_val_00000002.png", "ADE_val_00000003.png"]
    before = snapshot(root / OUT)
    (root / OUT / names[0]).write_bytes(b"")  # as after a crash of the machine
    os.utime(root / IN / names[1], ns=(1, before[names[1]] + 1))  # a newer source
    prepare("ade20k_150", root)
    after = snapshot(root / OUT)
    assert [after[name] != before[name] for name in names] == [True, True, False]
    assert "3 annotations, 2 files written" in capsys.readouterr().out
    (root / OUT / names[2]).unlink()
    prepare("ade20k_150", root)
    assert "3 annotations, 1 files written" in capsys.readouterr().out


def test_files_left_out_are_not_tried_again(tmp_path, monkeypatch):
    root = copy_miniature("pascal_voc", tmp_path)
    prepare("voc", root)
    folder = root / "VOCdevkit/VOC2012/annotations_detectron2/val"
    assert not (folder / "2007_000061.png").exists()
    source = root / "VOCdevkit/VOC2012/SegmentationClassAug/2007_000061.png"
    raw = load(source)
    raw[0, 0] = 1
    save(source, raw)  # now there is an object
    prepare("voc", root)
    assert (load(folder / "2007_000061.png") != 255).sum() == 1
    raw[0, 0] = 0
    save(source, raw)
    prepare("voc", root)
    assert not (folder / "2007_000061.png").exists()


def test_another_recipe_makes_all_again(tmp_path):
    items = many(tmp_path)
    convert(conversion(tmp_path, items), 2)
    assert convert(conversion(tmp_path, items, made_by=" otherwise"), 2) == 12
    assert convert(conversion(tmp_path, items, made_by=" otherwise"), 2) == 0


def test_files_of_another_program_are_taken_over_if_they_are_the_same(tmp_path):
    items = many(tmp_path)
    convert(conversion(tmp_path, items), 2)
    (tmp_path / "out" / NAME).unlink()
    before = snapshot(tmp_path / "out")
    assert convert(conversion(tmp_path, items), 2) == 0
    after = snapshot(tmp_path / "out")
    assert after.pop(NAME) and after == before  # the note is new: the next run need not compare
    (tmp_path / "out/05.png").unlink()
    assert convert(conversion(tmp_path, items), 2) == 1


def test_another_order_of_classes_is_noticed(tmp_path):
    """CAT-Seg and others write PASCAL Context in alphabetical order to the folder of ov-seg's."""
    root = copy_miniature("pascal_context", tmp_path)
    prepare("pascal_context", root)
    base = root / "VOCdevkit/VOC2010/annotations_detectron2"
    for path in (base / "pc59_val").iterdir():
        path.unlink()
    (base / "pc59_val").rmdir()
    (base / "pc59_alphabetical_val").rename(base / "pc59_val")
    (base / "pc59_val" / NAME).unlink()
    with pytest.raises(
        OvsegError, match=r"pc59_val/2008_000001\.png was made by another program.*move .*pc59_val away"
    ):
        prepare("pascal_context", root)


def test_a_killed_run_is_taken_up(tmp_path):
    """SIGKILL while the fourth file is half-written; then the same as in one go, and what was there is not touched."""
    items, whole = many(tmp_path / "a"), tmp_path / "b"
    convert(conversion(whole, many(whole)), 1)

    def run_and_be_killed() -> None:
        calls = []
        original = conversion_module.Image.Image.save

        def save_some(image, path, **options):
            original(image, path, **options)
            calls.append(path)
            if len(calls) == 4:
                with open(path, "r+b") as file:
                    file.truncate(20)
                os.kill(os.getpid(), signal.SIGKILL)

        conversion_module.Image.Image.save = save_some
        convert(conversion(tmp_path / "a", items), 1)

    process = multiprocessing.get_context("fork").Process(target=run_and_be_killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    out = tmp_path / "a/out"
    before = snapshot(out)
    assert sum(not name.startswith(".") for name in before) == 3
    assert len(find_leftovers(out)) == 1
    assert convert(conversion(tmp_path / "a", items), 2) == 9
    after = snapshot(out)
    assert find_leftovers(out) == []
    assert after.keys() == snapshot(whole / "out").keys()
    assert all(after[name] == before[name] for name in before if not name.startswith("."))
    for path in out.glob("*.png"):
        assert path.read_bytes() == (whole / "out" / path.name).read_bytes()


def test_bad_files_do_not_stop_the_others_but_a_bad_archive_does(tmp_path):
    items = many(tmp_path)
    for name in ("03", "07"):
        (tmp_path / f"raw/{name}.png").write_bytes(b"no picture")
    with pytest.raises(OvsegError, match=r"03\.png.*so are 1 more files, such as .*07\.png.*all else is done"):
        convert(conversion(tmp_path, items), 0)
    assert len(list((tmp_path / "out").glob("*.png"))) == 10
    items = many(tmp_path / "worse", 3 * MOST_BAD)
    for item in items:
        item.sources[0].write_bytes(b"no picture")
    read = []

    def count(item: Item) -> np.ndarray:
        read.append(item)
        return read_labels_of(item)

    worse = conversion(tmp_path / "worse", items)
    with pytest.raises(OvsegError, match=f"{MOST_BAD - 1} more files.*all else was given up"):
        convert(Conversion("test", items, count, worse.outputs, 0), 0)
    assert len(read) == MOST_BAD


def test_a_source_that_has_vanished(tmp_path):
    items = many(tmp_path)
    items[3].sources[0].unlink()
    with pytest.raises(OvsegError, match=r"03\.png is missing: unpack"):
        convert(conversion(tmp_path, items), 2)


def test_interruption_stops_soon_and_keeps_the_notes(tmp_path):
    items = many(tmp_path, 60)
    read = []

    def interrupt(item: Item) -> np.ndarray:
        read.append(item)
        if len(read) == 10:
            raise KeyboardInterrupt
        return np.full((2, 2), 0, np.uint8)  # left out

    plan, before = conversion(tmp_path, items, keep_empty=False), threading.active_count()
    for workers in (0, 2):
        read.clear()
        with pytest.raises(KeyboardInterrupt):
            convert(Conversion("test", items, interrupt, plan.outputs, 60), workers)
        assert len(read) < 60
        assert threading.active_count() < before + 3
    assert convert(Conversion("test", items, lambda item: np.zeros((2, 2), np.uint8), plan.outputs, 60), 2) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]


def test_a_full_disk_is_told_once(tmp_path, monkeypatch):
    items = many(tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(conversion_module.Image.Image, "save", full)
        with pytest.raises(OvsegError, match=r"disk full while writing .*out/0.\.png: free some space and run again"):
            convert(conversion(tmp_path, items), 2)
    assert list((tmp_path / "out").glob("*.png")) == []
    assert find_leftovers(tmp_path / "out") == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    items = many(tmp_path)
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OvsegError, match=r"cannot write .*out.*Permission denied"):
        convert(conversion(tmp_path, items), 2)


def test_a_read_only_disk(tmp_path, monkeypatch):
    """As the above, for those who test as root."""
    items = many(tmp_path)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OvsegError, match=r"cannot write .*out/"):
        convert(conversion(tmp_path, items), 2)


def test_prepared_data_can_be_read_only(tmp_path):
    items = many(tmp_path)
    convert(conversion(tmp_path, items), 2)
    (tmp_path / "out").chmod(0o500)
    try:
        assert convert(conversion(tmp_path, items), 2) == 0
    finally:
        (tmp_path / "out").chmod(0o700)


def test_a_damaged_note_does_no_harm(tmp_path):
    items = many(tmp_path)
    convert(conversion(tmp_path, items), 2)
    for content in ("{", "[]", '{"recipe": 3}', '{"recipe": "x", "left_out": {"a": 3}}'):
        (tmp_path / "out" / NAME).write_text(content)
        assert convert(conversion(tmp_path, items), 2) == 0


def test_spread_gives_every_result_and_raises_what_the_work_raises():
    assert sorted(spread(lambda number: number**2, range(100), 3)) == [number**2 for number in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(spread(lambda number: 1 // number, [1, 0, 1], 2))


def replaced(path: Path, array: np.ndarray, how: str) -> None:
    """Replace a source as people do, with a date long before its output's: no tool says when it did so."""
    before = path.stat()
    date = before.st_mtime_ns if how == "same date" else before.st_mtime_ns - 10**15
    if how == "in place":  # as cp -p does: the inode stays
        path.write_bytes(png(array))
    else:
        other = path.with_name("other.tmp")
        other.write_bytes(png(array))
        other.replace(path)
    os.utime(path, ns=(date, date))


def png(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(array).save(file, "PNG", compress_level=0)  # as long whatever it shows
        return file.getvalue()


@pytest.mark.parametrize(
    ("how", "same_size"), [("rename", False), ("rename", True), ("in place", True), ("same date", True)]
)
def test_a_source_replaced_by_one_of_an_older_date_is_converted_again(how, same_size, tmp_path, capsys):
    root = copy_miniature("ade20k_150", tmp_path)
    source, made = (root / place / "ADE_val_00000002.png" for place in (IN, OUT))
    labels = load(source)
    source.write_bytes(png(labels))
    prepare("ade20k_150", root)
    verify = ("--verify", "--partial", "--splits", "validation")
    assert prepare("ade20k_150", root, *verify) == 0
    changed = labels[:, ::-1] if same_size else labels.clip(0, 7)
    replaced(source, changed, how)
    assert prepare("ade20k_150", root, *verify) == 1
    assert f"{made}: was made before {source} was replaced; run the script again" in capsys.readouterr().out
    before = snapshot(root / OUT)
    prepare("ade20k_150", root)
    assert np.array_equal(load(made), (changed - 1).astype(np.uint8))
    after = snapshot(root / OUT)
    assert [name for name in before if after[name] != before[name] and name != NAME] == [made.name]
    assert prepare("ade20k_150", root, *verify) == 0


def test_a_source_that_only_looks_otherwise_is_read_once(tmp_path, monkeypatch):
    """As after rsync -a of a whole tree: other inodes, the same content."""
    items = many(tmp_path)
    convert(conversion(tmp_path, items), 2)
    before = snapshot(tmp_path / "out")
    for item in items:
        content = item.sources[0].read_bytes()
        item.sources[0].unlink()
        item.sources[0].write_bytes(content)
        os.utime(item.sources[0], ns=(1, 1))
    digests = []
    original = stamps.file_digest
    monkeypatch.setattr(stamps, "file_digest", lambda path: digests.append(path) or original(path))
    assert convert(conversion(tmp_path, items), 2) == 0
    after = snapshot(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {NAME}
    assert len(digests) == len(items)
    digests.clear()
    assert convert(conversion(tmp_path, items), 2) == 0
    assert digests == []


def test_a_left_out_file_follows_its_source_too(tmp_path, capsys):
    root = copy_miniature("pascal_voc", tmp_path)
    prepare("voc", root)
    made = root / "VOCdevkit/VOC2012/annotations_detectron2/val/2007_000061.png"
    source = root / "VOCdevkit/VOC2012/SegmentationClassAug/2007_000061.png"
    raw = load(source)
    raw[0, 0] = 1
    replaced(source, raw, "rename")
    assert prepare("voc", root, "--verify", "--partial") == 1
    assert f"{made}: was made before {source} was replaced" in capsys.readouterr().out
    prepare("voc", root)
    assert (load(made) != 255).sum() == 1


def test_files_of_an_older_version_are_compared_with_their_sources(tmp_path):
    """Its notes hold sizes and dates alone; a file made from an older source than is there now is made again."""
    items = many(tmp_path)
    convert(conversion(tmp_path, items), 2)
    note = tmp_path / "out" / NAME
    recipe = json.loads(note.read_text())["recipe"]
    note.write_text(json.dumps({"recipe": recipe, "left_out": {"00": [70, 1]}}))
    replaced(items[7].sources[0], np.full((3, 4), 3, np.uint8), "rename")
    assert convert(conversion(tmp_path, items), 2) == 1
    assert load(tmp_path / "out/07.png")[0, 0] == 2
    assert convert(conversion(tmp_path, items), 2) == 0


def test_a_shared_source_is_read_once(tmp_path, monkeypatch):
    root = copy_miniature("coco", tmp_path)
    digests = []
    original = stamps.file_digest
    monkeypatch.setattr(stamps, "file_digest", lambda path: digests.append(path.name) or original(path))
    assert prepare("coco_panoptic", root, "--workers", "0") == 0
    assert digests.count("panoptic_val2017.json") == 1


def test_a_folder_that_is_right_and_read_only_needs_no_new_note(tmp_path, monkeypatch):
    items = many(tmp_path)
    convert(conversion(tmp_path, items), 2)
    for item in items:  # as after a copy to another disk
        os.utime(item.sources[0], ns=(1, 1))

    def read_only(stamp, folder):
        raise OvsegError(f"cannot write {folder}")

    monkeypatch.setattr(stamps.Stamp, "save", read_only)
    assert convert(conversion(tmp_path, items), 2) == 0


def test_removed_sources_are_no_fault(tmp_path, capsys):
    root = copy_miniature("ade20k_150", tmp_path)
    prepare("ade20k_150", root)
    for path in (root / IN).iterdir():
        path.unlink()
    assert prepare("ade20k_150", root, "--verify", "--partial") == 0
