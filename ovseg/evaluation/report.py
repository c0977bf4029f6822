"""Output of an evaluation: results.json, per_class.csv, confusion.npz, a table on the terminal and an HTML page."""

from __future__ import annotations

import base64
import csv
import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, Template
from PIL import Image
from rich.console import Console
from rich.table import Table

from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import per_class_rows
from ovseg.evaluation.identity import flatten, short
from ovseg.evaluation.predictions import WORST_FILE, WorstImage, read_worst
from ovseg.evaluation.proposal_recall import MEAN_BEST_IOU, RECALLS
from ovseg.evaluation.record import RECORD_FILE
from ovseg.evaluation.tally import read_arrays
from ovseg.evaluation.true_segments import SEGMENT_KINDS
from ovseg.io.files import atomic_path, write_text
from ovseg.io.images import read_image, read_labels

CONFUSION_FILE, PER_CLASS_FILE, SG_TABLE_FILE = "confusion.npz", "per_class.csv", "sg_iou_table.json"
HTML_FILE = "report.html"
_CLASSES, _PAIRS = 15, 25  # rows of the tables of the worst
_IMAGE_SIDE = 420  # pixels of the longer side
_CHOSEN = {"union": "mIoU-union", "ground_truth": "mIoU-gt"}  # the score that is mIoU, by convention
_HEADLINES = (
    *("mIoU-union", "mIoU-gt", "mIoU-base", "mIoU-novel", "hIoU-base", "pACC", "mACC", "fwIoU"),
    *("Grounding-mIoU", "SG-mIoU"),
    *RECALLS,
    MEAN_BEST_IOU,
)


def write_results(folder: Path, record: Mapping[str, Any], confusion: np.ndarray, html: bool) -> None:
    """Write ``confusion.npz``, ``per_class.csv``, on request ``sg_iou_table.json`` and ``report.html``, and at last
    ``results.json``.

    Args:
        folder: folder of the data set's results.
        record: see :func:`ovseg.evaluation.record.results_record`.
        confusion: (K+1,K+1) int64.
        html: write the report.
    """
    with atomic_path(folder / CONFUSION_FILE) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, confusion=confusion)
    rows = per_class_rows(confusion, record["class_names"], record["evaluation_set"])
    if table := record.get("sg_iou"):
        write_json(folder / SG_TABLE_FILE, table["fathers"])
        rows = [row | _sg_columns(row, record) for row in rows]
    write_csv(folder / PER_CLASS_FILE, rows)
    if html:
        write_report(folder, record, confusion)
    write_json(folder / RECORD_FILE, record)


def read_confusion(folder: Path, num_classes: int) -> np.ndarray:
    """Read the confusion matrix of a finished evaluation, (K+1,K+1) int64, row = prediction, column = truth.

    Raises:
        OvsegError: the file is missing, damaged, or has another number of classes.
    """
    path = folder / CONFUSION_FILE
    try:
        confusion = read_arrays(path)["confusion"]
    except (ValueError, KeyError) as error:
        raise OvsegError(f"{path} cannot be read ({error}): evaluate again") from error
    if confusion.shape != (num_classes + 1, num_classes + 1):
        raise OvsegError(f"{path} has shape {confusion.shape}, but {RECORD_FILE} has {num_classes} classes")
    if confusion.dtype != np.int64 or confusion.min() < 0 or confusion.sum(dtype=float) > 2**62:
        raise OvsegError(f"{path} holds {confusion.dtype} that cannot be counts of pixels: evaluate again")
    return confusion


def print_results(record: Mapping[str, Any], folder: Path) -> None:
    """Print a summary of a record."""
    console, dataset = Console(highlight=False), record["dataset"]
    seconds = record["seconds_per_image"]["total"]
    protocol = (f"{name} {short(value)}" for name, value in flatten(record["protocol"]).items() if name != "dataset")
    lines = [f"{dataset}: {record['num_images']} images, {seconds:.3f} s per image", f"protocol: {', '.join(protocol)}"]
    if oracle := record["oracle"]:
        details = ", ".join(f"{key}: {value}" for key, value in oracle.items())
        lines.append(f"WITH AN ORACLE, not a result of the model alone ({details})")
    if (threshold := record["background_threshold"]) is not None:
        windows = ", or below the best one of their window if that is lower"
        capped = windows if record["protocol"]["background"] == "window threshold" else ""
        lines.append(f"background: pixels with a best score below {threshold:g}{capped}")
    if grounding := record["grounding"]:
        lines.append(f"Grounding mIoU: words {grounding['words']} ({grounding['how']})")
    if recall := record.get("proposal_recall"):
        lines.append(f"recall of proposals: {SEGMENT_KINDS[recall['segments']]}")
    if settings := record.get("dataset_settings"):
        lines.append(f"settings of this data set: {', '.join(f'{key} {value:g}' for key, value in settings.items())}")
    if table := record.get("sg_iou"):
        found = f"{table['pairs']} pairs of child and parent ({table['mutual_pairs']} mutual) from {table['origin']}"
        lines.append(f"SG-IoU: {found}" + ("" if table["threshold"] is None else f", cosine >= {table['threshold']:g}"))
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    console.print(results_table(record["results"], list(record["evaluation_set"]), record["miou_convention"]))
    console.print(f"details: {folder / RECORD_FILE}, {PER_CLASS_FILE}", soft_wrap=True, markup=False)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON atomically; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_strict(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the same keys atomically, the keys as header."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def results_table(results: Mapping[str, Mapping[str, float]], subsets: Sequence[str], convention: str) -> Table:
    """Return a table of the main scores of one data set: one column for all classes and one for each subset.

    Args:
        results: scores by task ("sem_seg", "grounding", "proposals", "sg_iou") as returned by the evaluators.
        subsets: names of the metadata's ``evaluation_set``; for a single one, its complement is shown, too.
        convention: ``TEST.MIOU_CONVENTION``, the convention of the subsets' mean IoUs.
    """
    columns = [*subsets, f"un{subsets[0]}"] if len(subsets) == 1 else list(subsets)
    own_names = [f"mIoU-{name}" for name in columns]
    tasks = ("sem_seg", "proposals", "sg_iou", "grounding")
    semantic, proposals, forgiving, grounded = (results.get(task, {}) for task in tasks)
    rows: dict[str, list[float | None]] = {}
    for name in ("mIoU-union", "mIoU-gt"):
        chosen = name == _CHOSEN[convention]
        rows[f"{name} (= mIoU)" if chosen else name] = [semantic[name], *map(semantic.get, own_names if chosen else ())]
    if subsets:
        rows["hIoU with all others"] = [None, *(semantic.get(f"hIoU-{name}") for name in columns)]
    if grounded:
        rows["Grounding-mIoU"] = [grounded.get(f"Grounding-{name}") for name in ("mIoU", *own_names)]
    if forgiving:
        rows["SG-mIoU"] = [forgiving.get(f"SG-{name}") for name in ("mIoU", *own_names)]
    rows["pACC"] = [semantic["pACC"], *(semantic.get(f"pAcc-{name}") for name in columns)]
    rows |= {"mACC": [semantic["mACC"]], "fwIoU": [semantic["fwIoU"]]}
    for score in (*RECALLS, MEAN_BEST_IOU) if proposals else ():
        rows[score] = [proposals.get(score), *(proposals.get(f"{score}-{name}") for name in columns)]
    table = Table()
    table.add_column("%")
    for name in ("all", *columns):
        table.add_column(name, justify="right")
    for name, values in rows.items():
        table.add_row(name, *(_number(value) for value in values))
    return table


def _sg_columns(row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that SG-IoU adds to a class's row: its score and its parent classes."""
    score, fathers = record["results"]["sg_iou"][f"SG-IoU-{row['name']}"], record["sg_iou"]["fathers"]
    above = fathers.get(row["name"]) or fathers.get(str(row["index"]), [])
    return {"SG-IoU": "" if math.isnan(score) else round(score, 4), "fathers": "; ".join(above)}


def _number(value: float | None) -> str:
    return "" if value is None else "-" if math.isnan(value) else f"{value:.2f}"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    names, ignore_label = record["class_names"], record["protocol"]["ignore_label"]
    rows = per_class_rows(confusion, names, record["evaluation_set"])
    rows = [{**row, **{key: math.nan if row[key] == "" else row[key] for key in ("IoU", "ACC")}} for row in rows]
    pairs = confusion_pairs(confusion, names)
    mistaken = {pair["true"]: pair for pair in reversed(pairs)}
    text = _template().render(
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
        worst_images=[
            {"file_name": image.file_name, "accuracy": 100 * image.accuracy, **_images(image, names, ignore_label)}
            for image in read_worst(folder / WORST_FILE) or ()
        ],
    )
    path = folder / HTML_FILE
    write_text(path, text)
    return path


@functools.cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("ovseg.evaluation"), autoescape=True, trim_blocks=True)
    environment.filters["percent"] = lambda value: "–" if math.isnan(value) else f"{value:.2f}"
    return environment.get_template(HTML_FILE)


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
    found = zip(called[order].tolist(), true[order].tolist(), share[order].tolist(), strict=True)
    return [
        {"true": class_names[t], "called": class_names[c], "share": percent, "pixels": int(counts[c, t])}
        for c, t, percent in found
    ]


def _headlines(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    scores = {name: value for task in record["results"].values() for name, value in task.items()}
    chosen = _CHOSEN[record["miou_convention"]]
    return [{"name": name, "value": scores[name], "chosen": name == chosen} for name in _HEADLINES if name in scores]


def _images(image: WorstImage, names: Sequence[str], ignore_label: int | None) -> dict[str, Any]:
    """Return ``images``, the data URLs of image, ground truth and prediction; or ``problem``, an error message."""
    from ovseg.result.drawing import colors_of, draw_regions  # late: most evaluations write no report

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
