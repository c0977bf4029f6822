"""What an evaluation leaves behind: results.json, per_class.csv and a table on the terminal."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ovseg.evaluation.proposals import MEAN_BEST_IOU, RECALL
from ovseg.files import atomic_path


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON atomically; NaN and infinities, which JSON lacks, become null."""
    with atomic_path(path) as temporary:
        text = json.dumps(_strict(content), indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the same keys atomically, the keys as header."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def results_table(results: Mapping[str, Mapping[str, float]], subsets: Sequence[str], convention: str) -> Table:
    """The main scores of one data set, a column for all classes and one for each subset.

    Args:
        results: scores by task ("sem_seg", "proposals"), as the evaluators give them.
        subsets: names of the metadata's ``evaluation_set``; the complement of a single one is shown, too.
        convention: TEST.MIOU_CONVENTION, which the subsets' mean IoUs follow.
    """
    columns = [*subsets, f"un{subsets[0]}"] if len(subsets) == 1 else list(subsets)
    semantic, proposals = results["sem_seg"], results.get("proposals", {})
    union, ground_truth = (_mark("mIoU-union", convention == "union"), _mark("mIoU-gt", convention == "ground_truth"))
    own = [semantic.get(f"mIoU-{name}") for name in columns]
    rows: list[tuple[str, list[float | None]]] = [
        (union, [semantic["mIoU-union"], *(own if convention == "union" else [None] * len(own))]),
        (ground_truth, [semantic["mIoU-gt"], *(own if convention == "ground_truth" else [None] * len(own))]),
        *([("hIoU with all others", [None, *(semantic.get(f"hIoU-{name}") for name in columns)])] if subsets else []),
        ("pACC", [semantic["pACC"], *(semantic.get(f"pAcc-{name}") for name in columns)]),
        ("mACC", [semantic["mACC"]]),
        ("fwIoU", [semantic["fwIoU"]]),
    ]
    for score in (RECALL, MEAN_BEST_IOU) if proposals else ():
        rows.append((score, [proposals[score], *(proposals.get(f"{score}-{name}") for name in columns)]))
    table = Table()
    table.add_column("%")
    for name in ("all", *columns):
        table.add_column(name, justify="right")
    for name, values in rows:
        table.add_row(name, *(_number(value) for value in values))
    return table


def _mark(name: str, chosen: bool) -> str:
    return f"{name} (= mIoU)" if chosen else name


def _number(value: float | None) -> str:
    return "" if value is None else "-" if math.isnan(value) else f"{value:.2f}"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
