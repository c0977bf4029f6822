"""COCO's JSON files as label maps: panoptic segments, and instances as polygons or run lengths.

Format: https://cocodataset.org/#format-data. Both name images by ``file_name`` and classes by ``category_id``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from ovseg.data.own.classes import Classes
from ovseg.data.own.description import Description
from ovseg.data.own.pairs import Pair, Pairing, find
from ovseg.data.own.values import UNLISTED, Labels, look_up, packed_colors
from ovseg.errors import OvsegError
from ovseg.vocabulary import Vocabulary


class CocoFile:
    """What panoptic and instances files have in common: images, categories, and the annotations of each image.

    Args:
        own: a description with one of them.

    Raises:
        OvsegError: while it is read: missing, not JSON, or without the parts that every COCO file has.
    """

    def __init__(self, own: Description):
        self.own = own
        self.path: Path = getattr(own, own.kind)

    @cached_property
    def content(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError) as error:
            raise self.own.error(self.own.kind, f"cannot read {self.path} ({error})") from error
        for part in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(part), list):
                raise self.own.error(self.own.kind, f"{self.path} is no COCO file: it has no list of {part}")
        return content

    @cached_property
    def categories(self) -> dict[int, str]:
        """Names by id, ascending by id as everywhere in COCO's world."""
        try:
            return dict(sorted((int(entry["id"]), str(entry["name"])) for entry in self.content["categories"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken("categories", error) from error

    def vocabulary(self) -> Vocabulary:
        """The categories as classes; their number in this list is their index."""
        return Vocabulary.from_words(list(self.categories.values()), origin=f"categories of {self.path}")

    def pairs(self) -> Pairing:
        """Images on disk with their entries of the file.

        Raises:
            OvsegError: no image of the file is on disk, or it is not clear which one is meant.
        """
        by_file_name: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        images = find(self.own, "images")
        for name, path in images.items():
            by_file_name[path.name].append((name, path))
        annotations = self._annotations()
        pairs: dict[str, Pair] = {}
        missing = []
        for entry in self.content["images"]:
            try:
                wanted, image_id = str(entry["file_name"]), entry["id"]
            except (KeyError, TypeError) as error:
                raise self._broken("images", error) from error
            candidates = by_file_name.get(PurePosixPath(wanted).name, [])
            exact = [c for c in candidates if f"/{c[1].as_posix()}".endswith(f"/{wanted}")] or candidates
            if len(exact) > 1:
                raise self.own.error("images", f"{exact[0][1]} and {exact[1][1]} may both be {wanted!r} of {self.path}")
            if not exact:
                missing.append(f"{wanted} of {self.path}")
                continue
            name, path = exact[0]
            if labels := self._label_file(annotations.get(image_id, [])):
                pairs[name] = Pair(name, path, labels, {**entry, "annotations": annotations.get(image_id, [])})
        return self._of_split(images, pairs, missing)

    def _label_file(self, annotations: list[dict[str, Any]]) -> Path | None:
        """The file that has the labels of an image; None for an image that a panoptic file says nothing of."""
        if self.own.kind == "coco_instances":
            return self.path
        return panoptic_folder(self.own) / str(annotations[0].get("file_name")) if annotations else None

    def _of_split(self, images: Mapping[str, Path], pairs: Mapping[str, Pair], missing: list[str]) -> Pairing:
        alone = images.keys() - pairs.keys()
        absent: list[str] = []
        if self.own.names is not None:
            wanted = set(self.own.names)
            absent = sorted(wanted - images.keys())
            alone, missing = alone & wanted, []
            pairs = {name: pair for name, pair in pairs.items() if name in wanted}
        if not pairs:
            shown = ", ".join(missing[:3] or absent[:3])
            raise self.own.error("images", f"none of the images of {self.path} is there, such as {shown}")
        return Pairing(
            tuple(pairs[name] for name in sorted(pairs)),
            tuple(sorted(str(images[name]) for name in alone)),
            tuple(missing),
            tuple(absent),
        )

    def _annotations(self) -> dict[Any, list[dict[str, Any]]]:
        found = defaultdict(list)
        try:
            for entry in self.content["annotations"]:
                found[entry["image_id"]].append(entry)
        except (KeyError, TypeError) as error:
            raise self._broken("annotations", error) from error
        return found

    def _broken(self, part: str, error: Exception) -> OvsegError:
        reason = f"{type(error).__name__} {error}"
        return self.own.error(self.own.kind, f"{self.path} is no COCO file: an entry of {part} is unusable ({reason})")


class _Decoder:
    """Reads the labels of one image of a COCO file."""

    def __init__(self, file: CocoFile, classes: Classes):
        self.classes = classes
        self.names = file.categories
        table = classes.table  # by id where `ids` has it, else by name
        self.of_category = {
            number: table.get(number, table.get(name.casefold(), classes.unlisted))
            for number, name in self.names.items()
        }

    def class_of(self, annotation: Mapping[str, Any]) -> int:
        return self.of_category.get(annotation["category_id"], self.classes.unlisted)

    def count_unlisted(self, annotation: Mapping[str, Any], pixels: int, unlisted: dict[str, int]) -> None:
        number = annotation["category_id"]
        name = f"category {self.names[number]!r}" if number in self.names else f"category {number}"
        unlisted[name] = unlisted.get(name, 0) + pixels


class PanopticLabels(_Decoder):
    """Semantic labels of COCO panoptic PNGs (segment id = R + 256 G + 65536 B, 0 = void); crowds count as others."""

    def __call__(self, pair: Pair) -> Labels:
        packed = packed_colors(pair.labels)
        segment_ids = packed >> 16 | packed & 0xFF00 | (packed & 0xFF) << 16
        segments = {segment["id"]: segment for segment in pair.entry["annotations"][0]["segments_info"]}
        table = {number: self.class_of(segment) for number, segment in segments.items()}
        table = {0: self.classes.background, **table}
        labels = look_up(segment_ids, table, self.classes.unlisted, show=lambda number: f"segment {number}")
        unlisted = {}
        for name, pixels in labels.unlisted.items():
            segment = segments.get(int(name.split()[1]))
            if segment is None:
                unlisted[f"{name}, which the JSON file does not have"] = pixels
            else:
                self.count_unlisted(segment, pixels, unlisted)
        return Labels(labels.indices, unlisted)


class InstanceLabels(_Decoder):
    """Semantic labels of COCO instances: polygons and run lengths; where objects overlap, the smaller one is on top."""

    def __call__(self, pair: Pair) -> Labels:
        height, width = int(pair.entry["height"]), int(pair.entry["width"])
        indices = np.full((height, width), self.classes.background, dtype=np.int32)
        unlisted: dict[str, int] = {}
        objects = [(int(run_lengths.area(rle)), rle, entry) for rle, entry in self._encoded(pair, height, width)]
        for area, rle, annotation in sorted(objects, key=lambda one: -one[0]):
            index = self.class_of(annotation)
            if index == UNLISTED:
                self.count_unlisted(annotation, area, unlisted)
            indices[run_lengths.decode(rle).astype(bool)] = index
        return Labels(indices, unlisted)

    def _encoded(self, pair: Pair, height: int, width: int) -> Iterable[tuple[dict[str, Any], Mapping[str, Any]]]:
        for annotation in pair.entry["annotations"]:
            shape = annotation.get("segmentation")
            try:
                if isinstance(shape, list):
                    if not shape or any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape):
                        raise ValueError("a polygon needs three points or more, each x and y")
                    rle = run_lengths.merge(run_lengths.frPyObjects(shape, height, width))
                elif isinstance(shape["counts"], list):
                    rle = run_lengths.frPyObjects(shape, height, width)
                else:
                    rle = {"size": shape["size"], "counts": shape["counts"]}
                if list(rle["size"]) != [height, width]:
                    raise ValueError(f"its size is {rle['size']} instead of {[height, width]}")
            except Exception as error:  # pycocotools raises whatever its C code meets
                raise OvsegError(
                    f"{pair.labels}: annotation {annotation.get('id')} of {pair.image} has no usable segmentation "
                    f"({type(error).__name__}: {error})"
                ) from error
            yield rle, annotation


def panoptic_folder(own: Description) -> Path:
    """Where the PNG files of ``coco_panoptic`` are: ``masks``, else the folder beside the JSON file with its name."""
    return own.path(own.masks[0]) if own.masks else own.coco_panoptic.with_suffix("")
