"""Damaged files of evaluations: every kind of damage is named in one line, nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.evaluation import partial, runner
from ovseg.evaluation.record import read_record
from ovseg.evaluation.tally import read_arrays
from tests.scripts import load_script


class Bomb:
    def __reduce__(self):
        return (open, ("unpickled", "w"))


def npy(shape: tuple[int, ...], data: bytes, kind: str = "<i8") -> bytes:
    """An array file with any header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def packed(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def damaged_archives(whole: bytes) -> dict[str, bytes | None]:
    """Variants of an ``.npz`` file; None stands for a folder."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    name = "confusion" if "confusion" in members else next(iter(members))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb()], dtype=object), allow_pickle=True)
    return {
        "empty": b"",
        "zeros": bytes(len(whole)),
        "half": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "text": b"not an archive",
        "pickle": pickle.dumps(Bomb()),
        "objects": packed(**{**members, name: objects.getvalue()}),
        "huge": packed(**{**members, name: npy((1 << 40, 1 << 20), b"")}),
        "negative": packed(**{**members, name: npy((-1, -8), bytes(64))}),
        "wide": packed(**{**members, name: npy((1,), b"", f"<U{2**29}")}),
        "no header": packed(**{**members, name: b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000)}),
        "shape": packed(**{**members, name: npy((3,), bytes(24))}),
        "type": packed(**{**members, name: npy((3, 3), bytes(72), "<f8")}),
        "nothing": packed(),
        "folder": None,
    }


def put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)


WHOLE: dict[str, float] = {}  # the scores of an undisturbed evaluation
KINDS = tuple(damaged_archives(packed(confusion=npy((1, 1), bytes(8)))))


@pytest.fixture
def finished(data_folder, monkeypatch) -> Path:
    """The folder of an evaluation's results."""
    monkeypatch.chdir(data_folder)
    runner.evaluate_all(standin.configuration(data_folder / "out", "TEST.REPORT", True), standin.StandIn())
    return data_folder / "out/inference" / standin.NAME


def report(*paths: Path) -> None:
    load_script("tools/report.py").main([str(path) for path in paths])


def test_report_takes_any_folder_of_a_run(finished, capsys):
    (finished.parent / "other").mkdir()
    for path in finished.iterdir():
        if path.is_file():
            (finished.parent / "other" / path.name).write_bytes(path.read_bytes())
    for given, number in (
        (finished.parents[1], 2),
        (finished.parent, 2),
        (finished, 1),
        (finished / "results.json", 1),
    ):
        (finished / "report.html").unlink(missing_ok=True)
        capsys.readouterr()
        report(given)
        assert capsys.readouterr().out.count("report.html in a browser") == number
        assert (finished / "report.html").is_file()
    with pytest.raises(OvsegError, match=r"no inference/<data set>/results\.json in .*: evaluate with OUTPUT_DIR"):
        report(finished.parents[2])


def test_damaged_arrays_of_a_report(finished):
    for name in ("confusion.npz", "worst_images.npz"):
        whole = (finished / name).read_bytes()
        for kind, content in damaged_archives(whole).items():
            put(finished / name, content)
            with pytest.raises(OvsegError) as error:
                report(finished)
            assert str(finished / name) in str(error.value) and "\n" not in str(error.value), kind
            if content is None:
                (finished / name).rmdir()
            (finished / name).write_bytes(whole)
    counts = dict(read_arrays(finished / "confusion.npz"))["confusion"]
    for wrong in (-counts, counts + 2**60, counts[:2], counts.astype(float)):
        np.savez(finished / "confusion.npz", confusion=wrong)
        with pytest.raises(OvsegError, match=r"confusion\.npz h"):
            report(finished)
    assert not Path("unpickled").exists()


def test_damaged_entries_of_a_record_are_named(finished):
    path = finished / "results.json"
    whole = json.loads(path.read_text())
    wrong = {
        "dataset": 3,
        "num_images": "7",
        "class_names": [1, 2],
        "evaluation_set": {"base": [99]},
        "protocol": {"dataset": None},
        "miou_convention": ["union"],
        "oracle": "masks",
        "results": {"sem_seg": {"mIoU": "high"}},
        "seconds_per_image": {"total": None},
        "finished": "2026-13-45T99:00:00",
        "versions": [],
        "config": None,
        "dataset_settings": {"MASK_THR": "x"},
        "sg_iou": {"fathers": {"a": "b"}},
        "weights": "none",
        "background_threshold": "low",
        "denominators": {"union": -1},
        "grounding": True,
        "proposal_recall": {"segments": "some"},
    }
    for key, value in wrong.items():
        path.write_text(json.dumps(whole | {key: value}))
        with pytest.raises(OvsegError, match=rf"results\.json is damaged, its {key} \("):
            read_record(path, complete=True)
    added = {"background_threshold", "denominators", "grounding"}  # records of the schema had not these at first
    path.write_text(json.dumps({name: value for name, value in whole.items() if name not in added}))
    assert not any(read_record(path, complete=True)[name] for name in added)
    for key in whole.keys() - added - {"proposal_recall"}:
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        with pytest.raises(OvsegError, match=r"results\.json (lacks|is not a results\.json|lacks protocol)"):
            read_record(path, complete=True)
    text = json.dumps(whole)
    for content in (b"", bytes(100), text[:200].encode(), b"\xff\xfe", b"[" * 100_000, b"null", b'{"a": NaN}'):
        path.write_bytes(content)
        with pytest.raises(OvsegError, match=r"results\.json (cannot be read|is not a results)") as error:
            read_record(path)
        assert "\n" not in str(error.value)
    path.write_text(text.replace(json.dumps(whole["results"]["sem_seg"]["mIoU"]), "1e999"))
    with pytest.raises(OvsegError, match="its results"):
        read_record(path)


def test_resuming_over_a_damaged_record_evaluates_again(finished, caplog, monkeypatch):
    monkeypatch.setattr("ovseg.evaluation.report.write_report", lambda *arguments: None)
    for content in (b"", b"\xff", None):
        put(finished / "results.json", content)
        if content is None:  # cannot be replaced by a file
            (finished / "results.json").rmdir()
        model = standin.StandIn()
        runner.evaluate_all(standin.configuration(finished.parents[1], "TEST.REPORT", True), model, resume=True)
        assert len(model.requests) == standin.NUM_IMAGES
        read_record(finished / "results.json", complete=True)
    assert "results.json cannot be read" in caplog.text


class Stops(standin.StandIn):
    def forward(self, batched_inputs):
        if len(self.requests) == 3:
            raise KeyboardInterrupt
        return super().forward(batched_inputs)


@pytest.fixture
def broken_off(data_folder, monkeypatch) -> Path:
    """The folder of an evaluation's parts; three images are counted."""
    monkeypatch.chdir(data_folder)
    monkeypatch.setattr("ovseg.evaluation.report.write_report", lambda *arguments: None)  # drawing takes the time
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate_all(standin.configuration(data_folder / "out", "TEST.REPORT", True), Stops())
    return data_folder / "out/inference" / standin.NAME / partial.FOLDER


def resumed(parts: Path) -> int:
    """How many images are evaluated; the scores must be right."""
    model = standin.StandIn()
    cfg = standin.configuration(parts.parents[2], "TEST.REPORT", True)
    scores = runner.evaluate_all(cfg, model, resume=True)[standin.NAME]
    if not WHOLE:
        cfg = standin.configuration(parts.parents[2] / "whole")
        WHOLE.update(runner.evaluate_all(cfg, standin.StandIn())[standin.NAME]["sem_seg"])
    assert scores["sem_seg"] == pytest.approx(WHOLE, nan_ok=True, abs=0, rel=0)
    assert not parts.exists() and not Path("unpickled").exists()
    return len(model.requests)


def test_whole_parts_are_taken_up(broken_off):
    assert resumed(broken_off) == standin.NUM_IMAGES - 3


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_parts_are_evaluated_again(broken_off, kind, caplog):
    (part,) = broken_off.glob("*.npz")
    put(part, damaged_archives(part.read_bytes())[kind])
    assert resumed(broken_off) == standin.NUM_IMAGES
    assert f"{part} cannot be read (" in caplog.text and "its images are evaluated again" in caplog.text


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("done", lambda done: done + 100),
        ("done", lambda done: done * 0),
        ("done", lambda done: done.astype(float)),
        ("sem_seg/confusion", lambda counts: -counts),
        ("sem_seg/confusion", lambda counts: counts.astype(float) * np.nan),
        ("sem_seg/num_images", lambda number: number + 1),
        ("watch/seconds", lambda seconds: seconds * np.nan),
        ("proposals/sums", lambda sums: sums[:, :2]),
        ("worst/index", lambda index: index + 50),
        ("worst/bytes", lambda sizes: sizes * 3),
        ("worst/accuracy", lambda accuracy: accuracy + 2),
        ("rle/bytes", lambda size: size // 2),
        ("rle/bytes", lambda size: size * np.inf),
        ("rle/stream", lambda name: np.array("../../elsewhere")),
        ("rle/stream", lambda name: None),
    ],
)
def test_parts_with_wrong_values_are_evaluated_again(broken_off, key, change, caplog):
    (part,) = broken_off.glob("*.npz")
    content = read_arrays(part)
    assert key in content
    content[key] = change(content[key])
    np.savez(part, **{name: value for name, value in content.items() if value is not None})
    assert resumed(broken_off) == standin.NUM_IMAGES
    assert "its images are evaluated again" in caplog.text


@pytest.mark.parametrize("damage", ["stream", "run.json", "run.json a folder", "a file", "no stream"])
def test_other_damage_in_the_folder_of_parts(broken_off, damage):
    (stream,) = broken_off.glob("*.jsonl")
    if damage == "stream":
        stream.write_bytes(stream.read_bytes().replace(b"{", b"\xff"))
    elif damage == "no stream":
        stream.unlink()
    elif damage == "run.json":
        (broken_off / "run.json").write_bytes(b"[" * 100_000)
    elif damage == "run.json a folder":
        put(broken_off / "run.json", None)
    else:
        for path in broken_off.iterdir():
            path.unlink()
        broken_off.rmdir()
        broken_off.write_text("a file")
    assert resumed(broken_off) == standin.NUM_IMAGES
