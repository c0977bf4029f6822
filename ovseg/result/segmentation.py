"""The result type of segmentation: a label map with names and scores, and its conversion to masks and files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import supervision as sv
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path, is_dir, shorten, write_text
from ovseg.io.images import label_areas, png_options, save_image
from ovseg.io.inputs import OUTPUT_SUFFIXES, output_files
from ovseg.result.explanation import Explanation, MaskScores
from ovseg.result.formats.png import save_label_map
from ovseg.result.label_runs import LabelRuns
from ovseg.result.regions import LabelledImage, checked_tolerance, find_regions
from ovseg.vocabulary.reading import fold_text

if TYPE_CHECKING:
    import fiftyone

UNLABELLED = -1
TOLERANCE = 1.0  # of polygons, pixels
PNG_LEVEL, JPEG_QUALITY = 4, 92


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """One image segmented into K words.

    Attributes:
        label_map: (H,W) int32; index of the word, or ``UNLABELLED`` (-1).
        names: K words.
        scores: (K,) float32; mean of the winning score over the word's pixels, 0 for a word that was not found. The
            meaning of a score depends on the model (class score times mask probability); it is not calibrated.
        image: (H,W,3) uint8 RGB, the segmented image.
        source: file of the image, or None.
        mask_scores: input of :meth:`explain`; None unless the segmenter was called with ``explain=True``.
        background: words that competed for pixels and whose pixels are unlabelled.
        score_map: (H,W) float32, the winning score of each pixel, of unlabelled ones, too; 0 where no mask is. None if
            it is unknown. It takes 4 bytes per pixel: ``dataclasses.replace(result, score_map=None)`` is without it.
    """

    label_map: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray
    image: np.ndarray
    source: str | None = None
    mask_scores: MaskScores | None = None
    background: tuple[str, ...] = ()
    score_map: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.label_map.shape != self.image.shape[:2]:
            raise ValueError(f"label map {self.label_map.shape} and image {self.image.shape} differ in size")
        if self.score_map is not None and self.score_map.shape != self.label_map.shape:
            raise ValueError(f"label map {self.label_map.shape} and score map {self.score_map.shape} differ in size")
        if len(self.scores) != len(self.names):
            raise ValueError(f"{len(self.names)} names but {len(self.scores)} scores")

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = ", ".join(f"{self.names[k]} {self.fractions[k]:.1%}" for k in self.found[:10])
        return f"Segmentation({width}x{height} pixels, {len(self.names)} words: {shares or 'none found'})"

    @classmethod
    def from_maps(
        cls,
        label_map: np.ndarray,
        score_map: np.ndarray,
        names: Sequence[str],
        image: np.ndarray,
        source: str | None = None,
        mask_scores: MaskScores | None = None,
        background: Sequence[str] = (),
        min_score: float | None = None,
    ) -> Segmentation:
        """Create a segmentation from a model's output; pixels without a score or a name become unlabelled.

        Args:
            label_map: (H,W) integers >= 0.
            score_map: (H,W) float, the winning score; exactly 0 for pixels that no mask covers.
            names: K words. Labels >= K become unlabelled: background words, and the "others" that a model adds to a
                single word.
            image: (H,W,3) uint8 RGB.
            source: file name.
            mask_scores, background: see the attributes of the class.
            min_score: pixels with a lower score become unlabelled; None for no limit.

        Raises:
            OvsegError: a score is NaN or infinite, or ``min_score`` is not a number.
        """
        if min_score is not None and not (isinstance(min_score, (int, float)) and np.isfinite(min_score)):
            raise OvsegError(f"min_score is {min_score!r}: give a number, in the unit of the model's scores")
        if not np.isfinite(score_map).all():
            raise OvsegError(
                f"the scores of {source or 'the image'} are not all numbers (NaN or infinite): the weights are "
                "damaged, or MODEL.CLIP_ADAPTER.PRECISION or MODEL.PROPOSER.PRECISION has too small a range (choose "
                "fp32 or bf16)"
            )
        labels = np.where((score_map == 0) | (label_map >= len(names)), np.int32(UNLABELLED), label_map)
        if min_score is not None:
            labels = np.where(score_map < min_score, np.int32(UNLABELLED), labels)
        labels = labels.astype(np.int32, copy=False)
        scores = mean_scores(labels, score_map, len(names))
        kept = score_map.astype(np.float32, copy=False)
        return cls(labels, tuple(names), scores, image, source, mask_scores, tuple(background), kept)

    @cached_property
    def areas(self) -> np.ndarray:
        """Number of pixels of each word, (K,) int64."""
        return label_areas(self.label_map, len(self.names))

    @property
    def fractions(self) -> np.ndarray:
        """Area of each word as a share of the image, (K,) float64 in [0,1]."""
        return self.areas / self.label_map.size

    @property
    def found(self) -> tuple[int, ...]:
        """Indices of the words that have pixels, largest area first."""
        order = np.argsort(-self.areas, kind="stable")
        return tuple(int(k) for k in order if self.areas[k] > 0)

    def index(self, word: str) -> int:
        """Return the index of a word, ignoring letter case.

        Raises:
            OvsegError: the word is not in ``names``; the message suggests the most similar one.
        """
        if (folded := fold_text(word)) in (known := [fold_text(name) for name in self.names]):
            return known.index(folded)
        near = difflib.get_close_matches(word, self.names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"its words are {', '.join(map(repr, self.names[:20]))}"
        raise OvsegError(f"{word!r} is not a word of this segmentation: {hint}")

    def mask(self, word: str) -> np.ndarray:
        """Return the mask of one word, (H,W) bool; all False if it was not found.

        Raises:
            OvsegError: see :meth:`index`.
        """
        return self.label_map == self.index(word)

    @property
    def masks(self) -> Mapping[str, np.ndarray]:
        """Masks by word, each (H,W) bool, of the words found, largest first."""
        return {self.names[k]: self.label_map == k for k in self.found}

    def explain(self, top_k: int = 3) -> Explanation:
        """Return the ``top_k`` best words of each mask with the scores of each classifier; prints as a table.

        Raises:
            OvsegError: the segmenter was called without ``explain=True``.
        """
        if self.mask_scores is None:
            raise OvsegError(
                "this segmentation was made without explanations: call segmenter(image, words, explain=True), or "
                "demo.py with --explain"
            )
        if top_k < 1:
            raise OvsegError(f"top_k must be at least 1, not {top_k}")
        height, width = self.label_map.shape
        return Explanation.of(self.mask_scores, height, width, top_k)

    def overlay(self, image: np.ndarray | None = None, colors: Mapping[int, sv.Color] | None = None) -> np.ndarray:
        """Draw the coloured and named regions on the image, at full size.

        Args:
            image: (H,W,3) uint8 RGB to draw on; None for the segmented image.
            colors: colour of each word found, by its index, for series of images
                (:func:`ovseg.result.drawing.colors_of`).

        Returns:
            (H,W,3) uint8 RGB, new.
        """
        from ovseg.result.drawing import draw_regions  # late: drawing libraries take a second to import

        return draw_regions(self.image if image is None else image, self.label_map, self.names, colors)

    def to_detections(self) -> sv.Detections:
        """Return one detection per word found, largest first: mask, box, ``class_id``, score, ``class_name``."""
        found = np.array(self.found, int)
        masks = self.label_map == found[:, None, None]
        return sv.Detections(
            xyxy=sv.mask_to_xyxy(masks).astype(np.float32),
            mask=masks,
            confidence=self.scores[found],
            class_id=found,
            data={"class_name": np.array([self.names[k] for k in found], str)},
        )

    def to_coco_rle(self) -> list[dict]:
        """Return COCO results, one per word found, largest first.

        Each has ``category_id`` (index of the word), ``category_name``, ``segmentation`` (``size`` [H,W] and
        ``counts``, COCO's compressed run lengths as str), ``bbox`` [x,y,width,height] and ``area`` in pixels,
        ``score``.
        """
        results, runs = [], LabelRuns.of(self.label_map)
        for k in self.found:
            rows, columns = runs.window(k)
            box = [float(n) for n in (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)]
            category = {"category_id": k, "category_name": self.names[k]}
            place = {"segmentation": runs.encode(k), "bbox": box, "area": int(self.areas[k])}
            results.append({**category, **place, "score": float(self.scores[k])})
        return results

    def regions(self, min_area: float = 0, min_score: float | None = None) -> LabelledImage:
        """Return the connected parts of each word, from which all label formats are written.

        Objects of one word that touch are one part, and parts of one object that do not touch are several.

        Args:
            min_area: smallest part in pixels; a number below 1 is a share of the image.
            min_score: lowest mean score of a part; None for no limit.

        Raises:
            OvsegError: an argument is not a number of this kind.
        """
        found = find_regions(self.label_map, self.score_map, self.scores.tolist())
        name = Path(self.source).name if self.source else ""
        return LabelledImage(name, self.label_map.shape, self.names, found).kept(min_area, min_score)

    def panoptic(self, min_area: float = 0, min_score: float | None = None) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return one segment per word found: ids (H,W) int32, 0 for unlabelled pixels, and COCO's ``segments_info``.

        Args:
            min_area, min_score: of the connected parts of words; see :meth:`regions`.

        Returns:
            see :func:`ovseg.result.formats.coco.segments`.
        """
        from ovseg.result.formats.coco import segments

        return segments(self.regions(min_area, min_score))

    def to_coco(
        self,
        kind: str = "instances",
        tolerance: float = TOLERANCE,
        min_area: float = 0,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """Return the content of a COCO file for this image, with ``score`` of each annotation or segment.

        Args:
            kind: "instances", one annotation per connected part: polygons, or compressed run lengths for parts with
                holes; or "panoptic", one segment per word, whose ids are those of :meth:`panoptic`.
            tolerance: of polygons, pixels; 0 for the exact edges of pixels.
            min_area, min_score: see :meth:`regions`.

        Raises:
            OvsegError: an argument is not valid.
        """
        from ovseg.result.formats import coco

        image = self.regions(min_area, min_score)
        if kind == "panoptic":
            return coco.coco_panoptic(image)
        if kind != "instances":
            raise OvsegError(f"kind is {kind!r}: choose 'instances' or 'panoptic'")
        return coco.coco_instances(image, checked_tolerance(tolerance))

    def to_yolo(self, tolerance: float = TOLERANCE, min_area: float = 0, min_score: float | None = None) -> str:
        """Return the lines of an Ultralytics YOLO label file, one per connected part; arguments as :meth:`to_coco`.

        The format has no scores. A slit of no width leads to each hole of a polygon.
        """
        from ovseg.result.formats.yolo import yolo_lines

        return yolo_lines(self.regions(min_area, min_score), checked_tolerance(tolerance))

    def to_labelme(
        self, tolerance: float = TOLERANCE, min_area: float = 0, min_score: float | None = None
    ) -> dict[str, Any]:
        """Return the content of a labelme file next to the image; arguments as :meth:`to_coco`.

        Parts with holes are shapes of the type "mask".
        """
        from ovseg.result.formats.labelme import labelme_dict

        image = self.regions(min_area, min_score)
        return labelme_dict(image, checked_tolerance(tolerance), image.name)

    def to_cvat(self, tolerance: float = TOLERANCE, min_area: float = 0, min_score: float | None = None) -> str:
        """Return a file of the format CVAT for images 1.1, XML; arguments as :meth:`to_coco`.

        Parts with holes are masks.
        """
        from ovseg.result.formats.cvat import cvat_xml

        return cvat_xml(self.regions(min_area, min_score), checked_tolerance(tolerance))

    def to_label_studio(
        self,
        tolerance: float = TOLERANCE,
        min_area: float = 0,
        min_score: float | None = None,
        url: str | None = None,
    ) -> dict[str, Any]:
        """Return a Label Studio task with one prediction; arguments as :meth:`to_coco`.

        Args:
            url: where Label Studio finds the image; None for its name.
        """
        from ovseg.result.formats.label_studio import label_studio_task

        image = self.regions(min_area, min_score)
        return label_studio_task(image, checked_tolerance(tolerance), image.name if url is None else url)

    def to_fiftyone(self, min_area: float = 0, min_score: float | None = None) -> fiftyone.Detections:
        """Return the parts as FiftyOne's detections with masks and confidences; arguments as :meth:`regions`.

        Raises:
            OvsegError: FiftyOne is not installed.
        """
        from ovseg.result.formats.fiftyone import fiftyone_detections

        return fiftyone_detections(self.regions(min_area, min_score))

    def to_json(self) -> dict:
        """Return everything except the image as a dict for ``json.dump``; ``segments`` is :meth:`to_coco_rle`.

        With ``mask_scores`` it has an entry ``explanation``, see
        :meth:`ovseg.result.explanation.Explanation.to_json`.
        """
        height, width = self.label_map.shape
        return {
            "image": self.source,
            "height": height,
            "width": width,
            "names": list(self.names),
            "background": list(self.background),
            "segments": [s | {"fraction": s["area"] / self.label_map.size} for s in self.to_coco_rle()],
            "unlabelled_fraction": float(1 - self.fractions.sum()),
            **({} if self.mask_scores is None else {"explanation": self.explain().to_json()}),
        }

    def picture(self) -> np.ndarray:
        """Draw the image, its overlay, and a legend, scaled to a size suited to a screen: (h,w,3) uint8 RGB."""
        from ovseg.result.drawing import draw_result

        return draw_result(self.image, self.label_map, self.names)

    def save(
        self, where: str | Path, png_level: int = PNG_LEVEL, jpeg_quality: int = JPEG_QUALITY
    ) -> tuple[Path, Path, Path]:
        """Write three files atomically; existing files are replaced.

        * ``PREFIX.png`` (or ``.jpg``, ``.webp``): :meth:`picture`
        * ``PREFIX_labels.png``: indices of the words as grey values; 8 bit, unlabelled 255; 16 bit, unlabelled 65535
          when there are more than 255 words
        * ``PREFIX.json``: :meth:`to_json`; written last

        Args:
            where: the first of these files; or PREFIX; or a folder (existing, or with a trailing slash), in which the
                files are named after the image.
            png_level: compression of PNG files, from 0 (none, fastest) to 9 (smallest).
            jpeg_quality: of ``.jpg`` and ``.webp``, 1 to 100.

        Returns:
            the three paths.

        Raises:
            OvsegError: the folder cannot be written, the disk is full, or there are more than 65535 words.
        """
        drawing_file, labels_file, json_file = output_files(self._drawing_file(where))
        is_png = drawing_file.suffix.lower() == ".png"
        options = png_options(png_level) if is_png else {"quality": jpeg_quality}
        drawing = Image.fromarray(self.picture())
        with atomic_path(drawing_file) as temporary:
            save_image(drawing, temporary, **options)
        save_label_map(self.label_map, len(self.names), labels_file, **png_options(png_level))
        write_text(json_file, json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n")
        return drawing_file, labels_file, json_file

    def _drawing_file(self, where: str | Path) -> Path:
        path = Path(where)
        if is_dir(path) or str(where).endswith(("/", "\\")):
            stem = shorten(Path(self.source).stem, len("_labels.png")) if self.source else "segmentation"
            return path / f"{stem}.png"
        return path if path.suffix.lower() in OUTPUT_SUFFIXES else path.with_name(path.name + ".png")


def mean_scores(labels: np.ndarray, score_map: np.ndarray, count: int) -> np.ndarray:
    """Return the mean score over the pixels of each of ``count`` labels, float32 (count,), 0 where there are none."""
    sums = np.zeros(count)
    for row, scores in zip(labels, score_map, strict=True):  # row by row: bincount copies to 16 bytes a pixel
        shown = row >= 0
        sums += np.bincount(row[shown], weights=scores[shown], minlength=count)
    return (sums / np.maximum(label_areas(labels, count), 1)).astype(np.float32)
