"""COCO's panoptic labels: where the PNG file and the segments of each image are."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ovseg.errors import OvsegError, reason_of

FILE, SEGMENTS = "pan_seg_file_name", "segments_info"  # entries of Detectron2's panoptic records


def panoptic_entries(dataset_name: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the entries ``pan_seg_file_name`` and ``segments_info`` of an image; None if it has no panoptic labels.

    Args:
        dataset_name: a registered data set. Its metadata may have ``panoptic_root`` and ``panoptic_json``, as those of
            Detectron2's panoptic data sets; images are looked up there by the stem of their file.
        record: of the image; its own entries come first.

    Raises:
        OvsegError: the JSON file is damaged, or lacks the image.
    """
    if FILE in record:
        return {FILE: record[FILE], SEGMENTS: record.get(SEGMENTS) or ()}
    if (places := panoptic_files(dataset_name)) is None:
        return None
    root, json_file = places
    try:
        name, segments = _by_stem(json_file)[Path(record["file_name"]).stem]
    except KeyError as error:
        raise OvsegError(
            f"{json_file} has no image {record.get('file_name')}: evaluate on the images of its split, or unpack the "
            "panoptic annotations again"
        ) from error
    return {FILE: str(root / name), SEGMENTS: segments}


def panoptic_files(dataset_name: str) -> tuple[Path, Path] | None:
    """Return folder of PNG files and JSON file that a data set's metadata names; None unless both are on disk."""
    metadata = MetadataCatalog.get(dataset_name)
    root, json_file = metadata.get("panoptic_root"), metadata.get("panoptic_json")
    if not root or not json_file or not Path(root).is_dir() or not Path(json_file).is_file():
        return None
    return Path(root), Path(json_file)


@functools.lru_cache(maxsize=2)
def _by_stem(json_file: Path) -> dict[str, tuple[str, Sequence[Mapping[str, Any]]]]:
    """Return (name of the PNG, segments) by the stem of the image's file, from a JSON file of COCO."""
    try:
        content = json.loads(json_file.read_bytes())
        return {
            Path(entry["file_name"]).stem: (entry["file_name"], entry["segments_info"])
            for entry in content["annotations"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OvsegError(
            f"{json_file} is not COCO's panoptic JSON ({reason_of(error)}): unpack its archive again"
        ) from error
