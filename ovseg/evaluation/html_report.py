"""Report of an evaluation as one self-contained HTML file with embedded images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from ovseg.data.label_files import read_labels
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import per_class_rows
from ovseg.evaluation.differences import flatten
from ovseg.evaluation.worst import FILE as WORST_FILE
from ovseg.evaluation.worst import WorstImage, read_worst
from ovseg.io.files import atomic_path
from ovseg.io.images import read_image

FILE = "report.html"
_CLASSES, _PAIRS = 15, 25  # rows of the tables of the worst
_IMAGE_SIDE = 420  # pixels of the longer side
_HEADLINES = (
    *("mIoU-union", "mIoU-gt", "mIoU-base", "mIoU-novel", "hIoU-base", "pACC", "mACC", "fwIoU", "SG-mIoU"),
    *("recall@0.5", "mean-best-IoU"),
)


def write_report(folder: Path, record: Mapping[str, Any], confusion: np.ndarray) -> Path:
    """Write ``report.html`` into the folder of a data set's results.

    Args:
        folder: holds ``worst_images.npz`` if such images were kept. The images themselves are read again from their
            files; where one is missing, its name is shown instead.
        record: see :func:`ovseg.evaluation.record.results_record`.
        confusion: (K+1,K+1) int64, row = prediction, column = truth.

    Returns:
        path of the report.
    """
    names = record["class_names"]
    environment = Environment(loader=PackageLoader("ovseg.evaluation"), autoescape=True, trim_blocks=True)
    environment.filters["percent"] = _percent
    rows = [_numbers(row) for row in per_class_rows(confusion, names, record["evaluation_set"])]
    pairs = confusion_pairs(confusion, names)
    mistaken = {pair["true"]: pair for pair in reversed(pairs)}
    text = environment.get_template(FILE).render(
        record=record,
        headlines=_headlines(record),
        protocol={key: value for key, value in flatten(record["protocol"]).items() if key != "dataset"},
        weights=flatten(record["weights"]),
        worst_classes=[
            {**row, "mistaken": mistaken.get(row["name"])}
            for row in sorted((row for row in rows if row["gt_pixels"]), key=lambda row: row["IoU"])[:_CLASSES]
        ],
        pairs=pairs[:_PAIRS],
        rows=rows,
        absent=sum(not row["gt_pixels"] for row in rows),
        absent_predicted=sum(not row["gt_pixels"] and row["predicted_pixels"] > 0 for row in rows),
        worst_images=_worst_images(folder / WORST_FILE, names, record["protocol"]["ignore_label"]),
    )
    path = folder / FILE
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def confusion_pairs(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of a true class and a wrongly predicted class, largest share first.

    Args:
        confusion: (K+1,K+1) int64, row = prediction, column = truth.
        class_names: K names.

    Returns:
        for each pair that occurs: ``true`` and ``called`` (names), ``pixels``, and ``share``, the percentage of the
        true class's pixels.
    """
    size = len(class_names)
    counts = np.asarray(confusion)[:size, :size]
    totals = counts.sum(axis=0)
    called, true = np.nonzero(counts * ~np.eye(size, dtype=bool))
    share = 100 * counts[called, true] / totals[true]
    order = np.lexsort((called, true, -counts[called, true], -share))
    return [
        {
            "true": class_names[true[i]],
            "called": class_names[called[i]],
            "share": float(share[i]),
            "pixels": int(counts[called[i], true[i]]),
        }
        for i in order
    ]


def _headlines(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    scores = {name: value for task in record["results"].values() for name, value in task.items()}
    chosen = {"union": "mIoU-union", "ground_truth": "mIoU-gt"}[record["miou_convention"]]
    return [{"name": name, "value": scores[name], "chosen": name == chosen} for name in _HEADLINES if name in scores]


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the class table with NaN in place of the empty cells of the CSV file."""
    return {**row, **{key: math.nan if row[key] == "" else row[key] for key in ("IoU", "ACC")}}


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _worst_images(path: Path, names: Sequence[str], ignore_label: int | None) -> list[dict[str, Any]]:
    return [
        {
            "file_name": image.file_name,
            "accuracy": 100 * image.accuracy,
            **_images(image, names, ignore_label),
        }
        for image in read_worst(path) or ()
    ]


def _images(image: WorstImage, names: Sequence[str], ignore_label: int | None) -> dict[str, Any]:
    """Return ``images``, the data URLs of image, ground truth and prediction; or ``problem``, an error message."""
    from ovseg.result.colors import colors_of  # these import matplotlib, which evaluations without a report do not need
    from ovseg.result.drawing import draw_regions

    try:
        pixels, truth, predicted = read_image(image.file_name), read_labels(image.label_file), image.label_map()
    except OvsegError as error:
        return {"problem": str(error)}
    truth = truth.astype(np.int64)
    if ignore_label is not None:
        truth[truth == ignore_label] = -1
    for labels, source in ((truth, image.label_file), (predicted, WORST_FILE)):
        if labels.max(initial=0) >= len(names):
            return {"problem": f"{source} holds class {labels.max()}, the data set has {len(names)}: evaluate again"}
    scale = _IMAGE_SIDE / max(predicted.shape)
    size = (max(1, round(predicted.shape[1] * scale)), max(1, round(predicted.shape[0] * scale)))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    maps = [np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, 0)) for labels in (truth, predicted)]
    colors = colors_of(label for label in np.unique(maps).tolist() if label >= 0)
    drawn = [small, *(draw_regions(small, labels, names, colors) for labels in maps)]
    return {"images": [_data_url(pixels) for pixels in drawn]}


def _data_url(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
