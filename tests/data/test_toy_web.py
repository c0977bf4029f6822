"""Image-text pairs of the toy world's web: drawn once, resumed, without labels."""

from __future__ import annotations

import cv2
import pytest

from ovseg.errors import OvsegError
from ovseg.toy.classes import CLASS_NAMES
from ovseg.toy.web import render_web


def test_views_and_captions(tmp_path):
    records = render_web(range(2, 5), tmp_path)
    assert len({record["image_id"] for record in records}) == len(records) >= 6
    for record in records:
        assert (
            record.keys() == {"file_name", "image_id", "height", "width", "captions"} and len(record["captions"]) == 2
        )
        assert cv2.imread(record["file_name"]).shape == (record["height"], record["width"], 3)
        named = [name for name in CLASS_NAMES if any(f" {name}" in f" {text}" for text in record["captions"])]
        assert named, record["captions"]
    whole = next(record for record in records if record["image_id"] == "2_0")
    close = next(record for record in records if record["image_id"] == "2_1")
    assert len(max(close["captions"], key=len)) < len(max(whole["captions"], key=len))


def test_only_what_is_missing_is_drawn(tmp_path):
    before = render_web(range(2), tmp_path)
    folder = tmp_path / "web"
    kept, lost = (folder / "records" / f"{seed:07d}.json" for seed in range(2))
    time = kept.stat().st_mtime_ns
    lost.unlink()  # a run that was killed
    assert render_web(range(2), tmp_path) == before
    assert kept.stat().st_mtime_ns == time and lost.is_file()


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "web").write_text("")
    with pytest.raises(OvsegError, match=r"cannot keep the toy scenes .* OVSEG_CACHE"):
        render_web(range(1), tmp_path)
