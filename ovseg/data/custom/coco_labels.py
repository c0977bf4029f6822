"""Label maps of COCO's annotations: panoptic segments, and instances as polygons or run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from ovseg.data.custom.classes import Classes
from ovseg.data.custom.coco import CocoFile
from ovseg.data.custom.geometry import (
    Ids,
    NoArea,
    checked_points,
    checked_run_lengths,
    labelled_size,
    refuse_fractions,
    whole_number,
)
from ovseg.data.custom.image_label_pairs import Pair
from ovseg.data.custom.names import text_key
from ovseg.data.custom.values import UNLISTED, Labels, look_up, packed_colors, settle
from ovseg.errors import OvsegError, shown

_LONGEST_OUTLINE = 5_000_000  # pixels, for each of which pycocotools takes about 100 bytes


class _Decoder:
    """Reads the labels of one image of a COCO file."""

    def __init__(self, file: CocoFile, classes: Classes):
        self.classes = classes
        self.names = file.categories
        self.ids = Ids(self.names)
        # by id where `ids` has it, else by name, else by an id in quotes
        self.of_category = {
            number: next(
                (classes.table[key] for key in (number, text_key(name), str(number)) if key in classes.table), UNLISTED
            )
            for number, name in self.names.items()
        }

    def class_of(self, annotation: Mapping[str, Any]) -> int:
        """Class index, IGNORED or UNLISTED."""
        return self.of_category.get(self.ids.find(annotation.get("category_id")), UNLISTED)

    def category(self, annotation: Mapping[str, Any]) -> str:
        """What messages call an annotation's category."""
        number = self.ids.find(annotation.get("category_id"))
        return f"category {shown(annotation.get('category_id') if number is None else self.names[number])}"


class PanopticLabels(_Decoder):
    """Semantic labels of COCO panoptic PNGs (segment id = R + 256 G + 65536 B, 0 = void); crowds count as others."""

    def __call__(self, pair: Pair) -> Labels:
        packed = packed_colors(pair.labels)
        segment_ids = packed >> 16 | packed & 0xFF00 | (packed & 0xFF) << 16
        segments = self._segments(pair)
        table = {number: self.class_of(segment) for number, segment in segments.items()}
        table = {0: self.classes.background, **table}
        labels = look_up(segment_ids, table, show=lambda number: f"segment {number}")
        named: dict[str, int] = {}
        for name, pixels in labels.unlisted.items():
            segment = segments.get(int(name.split()[1]))
            text = f"{name}, which the JSON file does not have" if segment is None else self.category(segment)
            named[text] = named.get(text, 0) + pixels
        return settle(Labels(labels.indices, named), self.classes.unlisted)

    def _segments(self, pair: Pair) -> dict[int, Mapping[str, Any]]:
        segments: dict[int, Mapping[str, Any]] = {}
        for annotation in pair.entry["annotations"]:
            infos = annotation.get("segments_info")
            if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
                raise OvsegError(f"{pair.where}: the annotation of {pair.image} has no list of segments_info")
            for info in infos:
                try:
                    number = whole_number(info.get("id"), "the id of a segment")
                except ValueError as error:
                    raise OvsegError(f"{pair.where}: {error}") from error
                if self.class_of(segments.setdefault(number, info)) != self.class_of(info):
                    raise OvsegError(f"{pair.where}: segment {number} has two categories: give each segment its own id")
        return segments


class InstanceLabels(_Decoder):
    """Semantic labels of COCO instances: polygons and run lengths; where objects overlap, the smaller one is on top."""

    def __call__(self, pair: Pair) -> Labels:
        size = labelled_size(pair.entry["height"], pair.entry["width"], pair.image)
        indices = np.full(size, self.classes.background, dtype=np.int32)
        unlisted: dict[str, int] = {}
        left_out: dict[str, int] = {}
        objects = []
        for number, annotation in enumerate(pair.entry["annotations"], start=1):
            name = f"annotation {shown(annotation['id']) if 'id' in annotation else f'number {number}'}"
            try:
                rle, too_short = _encode(annotation.get("segmentation"), size)
            except NoArea as error:
                left_out[f"{name} ({self.category(annotation)}), {error}"] = 0
                continue
            except (TypeError, ValueError) as error:
                reason = f"{name} of {pair.image} has no usable segmentation: {error}"
                raise OvsegError(f"{pair.labels}: {reason}") from error
            if too_short:
                left_out[f"{too_short} polygons of {name}, which have no area"] = 0
            objects.append((int(run_lengths.area(rle)), rle, annotation))
        for area, rle, annotation in sorted(objects, key=lambda one: -one[0]):
            index = self.class_of(annotation)
            if index == UNLISTED:
                name = self.category(annotation)
                unlisted[name] = unlisted.get(name, 0) + area
            indices[run_lengths.decode(rle).astype(bool)] = index
        return settle(Labels(indices, unlisted, left_out), self.classes.unlisted)


def _encode(shape: Any, size: tuple[int, int]) -> tuple[dict[str, Any], int]:
    """pycocotools' run lengths of a segmentation, and how many of its polygons have no area.

    Raises:
        NoArea: it covers no pixel.
        ValueError: no polygons, no run lengths, or numbers that no image of this size can have.
    """
    too_short = 0
    if shape is None or shape in ([], {}, ""):
        raise NoArea("which has no segmentation")
    if isinstance(shape, dict):
        rle = run_lengths.encode(np.asfortranarray(checked_run_lengths(shape, size), dtype=np.uint8))
    elif isinstance(shape, list):
        polygons = [checked_points(polygon, size) for polygon in (shape if isinstance(shape[0], list) else [shape])]
        usable = [polygon.ravel().tolist() for polygon in polygons if len(np.unique(polygon, axis=0)) > 2]
        too_short = len(polygons) - len(usable)
        if sum(np.abs(np.diff(polygon, axis=0)).sum() for polygon in polygons) > _LONGEST_OUTLINE:
            raise ValueError(f"its outline is longer than {_LONGEST_OUTLINE:,} pixels")
        if not usable:
            raise NoArea("a polygon of fewer than 3 points, which has no area")
        refuse_fractions(np.concatenate(polygons))
        rle = run_lengths.merge(run_lengths.frPyObjects(usable, *size))
    else:
        raise ValueError(f"it is {str(shape)[:40]!r}, neither polygons nor run lengths")
    if not run_lengths.area(rle):
        raise NoArea("which covers no pixel")
    return rle, too_short
