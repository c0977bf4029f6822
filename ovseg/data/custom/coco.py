"""COCO's JSON files: images, annotations and categories, and the label maps of panoptic segments and of instances.

Format: https://cocodataset.org/#format-data. Both kinds of file, panoptic and instances, name images by ``file_name``
and classes by ``category_id``. Real files are merged, exported on other systems and edited by hand: what can mean one
thing only is matched, all else is refused or named.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from pycocotools import mask as run_lengths

from ovseg.data.custom.classes import Classes
from ovseg.data.custom.description import Description
from ovseg.data.custom.geometry import (
    Ids,
    NoArea,
    checked_points,
    checked_run_lengths,
    labelled_size,
    refuse_fractions,
    whole_number,
)
from ovseg.data.custom.names import path_parts, text_key
from ovseg.data.custom.pairing import Pair, Pairing, find, split_names
from ovseg.data.custom.values import UNLISTED, Labels, look_up, packed_colors, settle
from ovseg.errors import OvsegError, reason_of, shown
from ovseg.io.files import check_file, is_file
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.reading import clean_text

_SHOWN = 5  # annotations that a sentence names
_DEEPEST = 6  # parts of paths that are compared
Entry = Mapping[str, Any]


class CocoFile:
    """Content that panoptic and instances files share: images, categories, and the annotations of each image.

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
            check_file(self.path, "file")
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError, OvsegError) as error:
            raise self._error(f"cannot read {self.path} ({reason_of(error)})") from error
        for part in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(part), list):
                raise self._error(f"{self.path} is no COCO file: it has no list of {part}")
        return content

    @cached_property
    def categories(self) -> dict[int | str, str]:
        """Names by id, ascending by id as everywhere in COCO's world."""
        names: dict[int | str, str] = {}
        for entry in self._entries("categories", "id", "name"):
            number, name = _number(entry["id"]), clean_text(str(entry["name"]))
            if names.setdefault(number, name) != name:
                raise self._error(
                    f"{self.path} has two categories of the id {number}, {shown(names[number])} and {shown(name)}"
                )
        return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def vocabulary(self) -> Vocabulary:
        """Return the categories in order as classes; categories of the same name are one class."""
        names: dict[str, str] = {}
        for name in self.categories.values():
            names.setdefault(text_key(name), name)
        return Vocabulary.from_words(list(names.values()), origin=f"categories of {self.path}")

    def pairs(self) -> Pairing:
        """Return the images on disk with their entries of the file.

        Raises:
            OvsegError: no image of the file is on disk, it is not clear which one is meant, or two have one id.
        """
        images = find(self.own, "images")
        entries, missing = self._on_disk(images)
        annotations, homeless = self._annotations()
        pairs: dict[str, Pair] = {}
        for name, listed in entries.items():
            of_image = [one for image_id in dict.fromkeys(e["id"] for e in listed) for one in annotations[image_id]]
            if labels := self._label_file(images[name], of_image):
                sizes = [e for e in listed if e.get("height") and e.get("width")] or listed
                entry = {"height": sizes[0].get("height"), "width": sizes[0].get("width"), "annotations": of_image}
                pairs[name] = Pair(name, images[name], labels, entry)
        return self._of_split(images, pairs, missing, homeless)

    def _on_disk(self, images: Mapping[str, Path]) -> tuple[dict[str, list[Entry]], list[str]]:
        """Return the file's entries by name of their image (several if listed repeatedly), and missing images."""
        by_end: dict[tuple[str, ...], list[str]] = defaultdict(list)  # names of images by the last parts of their paths
        loosely: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, path in images.items():
            for end in _ends(path_parts(path.as_posix())):
                by_end[end].append(name)
                loosely[_loose(end)].append(name)
        wanted: dict[Any, tuple[str, ...]] = {}
        found: dict[str, list[tuple[int, tuple[str, ...], Entry]]] = defaultdict(list)
        missing = []
        for entry in self._entries("images", "id", "file_name"):
            parts = path_parts(str(entry["file_name"]))
            other = wanted.setdefault(entry["id"], parts)
            if not _same_file(parts, other):
                raise self._error(
                    f"{self.path} has two images of the id {shown(entry['id'])}, {shown('/'.join(other))} and "
                    f"{shown('/'.join(parts))}, so its annotations are ambiguous: give each image its own id"
                )
            matches = [(end, by_end[end]) for end in _ends(parts) if end in by_end]
            matches = matches or [(end, loosely[_loose(end)]) for end in _ends(parts) if _loose(end) in loosely]
            if not matches:
                missing.append(f"{str(entry['file_name'])[:200]} of {self.path}")
                continue
            end, (name, *others) = matches[0]
            if others:
                both = f"{images[name]} and {images[others[0]]}"
                raise self.own.error("images", f"{both} may both be {'/'.join(parts)!r} of {self.path}")
            found[name].append((len(end), parts, entry))
        entries: dict[str, list[Entry]] = {}
        for name, several in found.items():
            most = max(count for count, _, _ in several)
            closest = [parts for count, parts, _ in several if count == most]
            if not all(_same_file(parts, closest[0]) for parts in closest):
                texts = " and ".join(repr("/".join(parts)) for parts in dict.fromkeys(closest))
                raise self.own.error("images", f"{images[name]} may be {texts} of {self.path}: which one is it?")
            entries[name] = [entry for _, parts, entry in several if _same_file(parts, closest[0])]
            missing += [
                f"{entry['file_name']} of {self.path}"
                for _, parts, entry in several
                if not _same_file(parts, closest[0])
            ]
        return entries, missing

    def _label_file(self, image: Path, annotations: Sequence[Entry]) -> Path | None:
        """Return the file with the labels of an image; None for an image that a panoptic file does not annotate."""
        if self.own.kind == "coco_instances":
            return self.path
        files = {path_parts(str(one.get("file_name") or f"{image.stem}.png")) for one in annotations}
        if len(files) > 1:
            raise self._error(f"{self.path} has several label files for {image}: {sorted(map('/'.join, files))}")
        if not files:
            return None
        parts = files.pop()
        whole = panoptic_folder(self.own).joinpath(*parts)
        return whole if is_file(whole) or not parts else self._panoptic_files.get(parts[-1], whole)

    @cached_property
    def _panoptic_files(self) -> dict[str, Path]:
        """By name after NFC."""
        return {path_parts(path.name)[-1]: path for path in panoptic_folder(self.own).glob("*.png")}

    def _of_split(
        self, images: Mapping[str, Path], pairs: Mapping[str, Pair], missing: list[str], homeless: tuple[str, ...]
    ) -> Pairing:
        alone = images.keys() - pairs.keys()
        absent: list[str] = []
        if self.own.names is not None:
            wanted = set(split_names(self.own))
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
            homeless,
        )

    def _annotations(self) -> tuple[dict[Any, list[Entry]], tuple[str, ...]]:
        """Return annotations by the id of their image, and a sentence for each id without an image."""
        ids = Ids(entry["id"] for entry in self._entries("images", "id", "file_name"))
        found: dict[Any, list[Entry]] = defaultdict(list)
        lost: dict[str, list[str]] = defaultdict(list)
        for entry in self._entries("annotations", "image_id"):
            image_id = ids.find(entry["image_id"])
            if image_id is None:
                lost[shown(entry["image_id"])].append(shown(entry.get("id")))
            else:
                found[image_id].append(entry)
        if lost and not found:
            raise self._error(
                f"no annotation of {self.path} belongs to an image: {next(iter(lost))} is no id of an image"
            )
        return found, tuple(
            f"{len(numbers):,} annotations of {self.path} have the image_id {image_id}, which is no image's: "
            + ", ".join(numbers[:_SHOWN])
            + (", ..." if len(numbers) > _SHOWN else "")
            for image_id, numbers in lost.items()
        )

    def _entries(self, part: str, *keys: str) -> list[Entry]:
        """Return the entries of a part, each with all of ``keys``."""
        for entry in self.content[part]:
            if not isinstance(entry, dict) or isinstance(entry.get(keys[0]), (list, dict)):
                reason = f"an entry of {part} is unusable, {shown(entry)}"
                raise self._error(f"{self.path} is no COCO file: {reason}")
            if missing := [key for key in keys if entry.get(key) is None]:
                raise self._error(f"{self.path} has an entry of {part} without {missing[0]}, {shown(entry)}")
        return self.content[part]

    def _error(self, what: str) -> OvsegError:
        return self.own.error(self.own.kind, what)


def panoptic_folder(own: Description) -> Path:
    """Return the folder of the PNG files: ``masks``, else the folder next to the JSON file with its name."""
    return own.path(own.masks[0]) if own.masks else own.coco_panoptic.with_suffix("")


def _number(value: Any) -> int | str:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)


def _ends(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the last parts of a path, the longest end first."""
    return [parts[-count:] for count in range(min(len(parts), _DEEPEST), 0, -1)]


def _loose(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return parts without letter case and with ``%20`` decoded, as Windows and web addresses compare them."""
    return tuple(unquote(part).casefold() for part in parts)


def _same_file(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether one path is the end of the other."""
    return all(a == b for a, b in zip(reversed(one), reversed(other), strict=False))


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
        """Return the class index, IGNORED or UNLISTED."""
        return self.of_category.get(self.ids.find(annotation.get("category_id")), UNLISTED)

    def category(self, annotation: Mapping[str, Any]) -> str:
        """Return the name of an annotation's category for messages."""
        number = self.ids.find(annotation.get("category_id"))
        return f"category {shown(annotation.get('category_id') if number is None else self.names[number])}"


class PanopticLabels(_Decoder):
    """Semantic labels of COCO panoptic PNGs (segment id = R + 256 G + 65536 B, 0 = void); crowds count as others."""

    def __call__(self, pair: Pair) -> Labels:
        pixels, segments = segment_ids(pair.labels), self._segments(pair)
        table = {number: self.class_of(segment) for number, segment in segments.items()}
        table = {0: self.classes.background, **table}
        labels = look_up(pixels, table, show=lambda number: f"segment {number}")
        named: dict[str, int] = {}
        for name, pixels in labels.unlisted.items():
            segment = segments.get(int(name.split()[1]))
            text = f"{name}, which the JSON file does not have" if segment is None else self.category(segment)
            named[text] = named.get(text, 0) + pixels
        return settle(Labels(labels.indices, named), self.classes.unlisted)

    def masks(self, pair: Pair) -> Iterator[tuple[int, np.ndarray]]:
        """Yield class index and mask, bool (H, W), of each segment of an image that has a class and a pixel."""
        pixels = segment_ids(pair.labels)
        for number, segment in self._segments(pair).items():
            if (index := self.class_of(segment)) >= 0 and (mask := pixels == number).any():
                yield index, mask

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


def segment_ids(path: str | Path) -> np.ndarray:
    """Return (H,W) int32, the segment of each pixel of a panoptic PNG: R + 256 G + 65536 B; 0 is void.

    Raises:
        OvsegError: the file is missing, damaged, not an image, or its compression changes pixels.
    """
    packed = packed_colors(Path(path))
    return packed >> 16 | packed & 0xFF00 | (packed & 0xFF) << 16


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
                rle, too_short = encode_segmentation(annotation.get("segmentation"), size)
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


def encode_segmentation(shape: Any, size: tuple[int, int]) -> tuple[dict[str, Any], int]:
    """Return pycocotools' run lengths of a segmentation, and the number of its polygons without an area.

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
