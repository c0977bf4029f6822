"""Comparison of evaluation results: which are comparable, and tables of those that are."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ovseg.errors import OvsegError
from ovseg.evaluation.identity import differences, digest_of, flatten, short
from ovseg.evaluation.proposal_recall import MEAN_BEST_IOU, RECALLS
from ovseg.evaluation.record import RECORD_FILE, read_record, record_files

Record = Mapping[str, Any]

_MUST_AGREE = ("protocol", "num_images", "file_list_sha256", "miou_convention")
_FIRST_SCORES = ("mIoU", "mIoU-union", "mIoU-gt")
_LAST_SCORES = ("pACC", "mACC", "fwIoU", "Grounding-mIoU", "SG-mIoU", *RECALLS, MEAN_BEST_IOU)
_OF_CLASSES = tuple(f"{kind}{score}" for kind in ("", "SG-", "Grounding-") for score in ("IoU-", "ACC-"))
_SETTINGS = ("weights", "oracle", "background_threshold", "views", "config", "versions", "git_commit", "device")
# These differ in any two runs, or follow from the weights.
_EXPECTED = re.compile(r"config\.(OUTPUT_DIR|SEED|DATASETS\.TEST|MODEL\.WEIGHTS)$")


@dataclass
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: of their output folders.
        records: of one data set, at least one.
        unlike: how the data and the protocol differ from those of the first group; empty if both are comparable.
        same: one sentence for each duplicate among the given runs; within a group, a duplicate counts once.
    """

    name: str
    records: list[Record]
    unlike: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The name, with the number of runs and marks for an oracle or another protocol."""
        oracle = self.records[0]["oracle"]
        several = f" ({len(self.records)} runs)" if len(self.records) > 1 else ""
        return self.name + (" *" if self.unlike else "") + (f" (oracle {oracle['oracle']})" if oracle else "") + several


def _group_names(runs: Sequence[Path]) -> list[str]:
    """Return the names of the output folders without the seed (``_0``, ...), after the parent's name if ambiguous."""
    folders = [_output_folder(run.resolve()) for run in runs]
    names = []
    for folder in folders:
        alike = {other for other in folders if other.name == folder.name}
        names.append(re.sub(r"_\d+$", "", folder.name if len(alike) == 1 else f"{folder.parent.name}/{folder.name}"))
    return names


def compare(runs: Sequence[Path], force: bool = False) -> dict[str, list[Group]]:
    """Group runs by data set and check that they are comparable.

    Args:
        runs: each an ``OUTPUT_DIR`` or a ``results.json``.
        force: include runs that are not comparable; see :attr:`Group.unlike`.

    Returns:
        groups in the given order, by data set. With ``force``, the data sets on which some runs were not evaluated
        form a single entry.

    Raises:
        OvsegError: a run cannot be read; or, without ``force``, runs differ in data set, images, labels, protocol or
            convention. The message states the difference.
    """
    found: dict[str, dict[str, Group]] = {}
    given: dict[str, Path] = {}
    names = _group_names(runs)
    for name, run in zip(names, runs, strict=True):
        for record in map(read_record, record_files(run)):
            group = found.setdefault(record["protocol"]["dataset"], {}).setdefault(name, Group(name, []))
            first = given.setdefault(digest := digest_of(record), run)
            counted = digest in map(digest_of, group.records)
            if counted or first != run:
                group.same.append(f"{run} is the same run as {first}" + (", counted once" if counted else ""))
            if not counted:
                group.records.append(record)
    partly = [dataset for dataset, groups in found.items() if len(groups) < len(set(names))]
    if partly and not force:
        there, lacking = (
            [name for name in dict.fromkeys(names) if (name in found[partly[0]]) == has] for has in (True, False)
        )
        raise OvsegError(
            f"{', '.join(there)}: evaluated on {partly[0]}, but not {', '.join(lacking)}; give runs on the same data "
            f"sets, or single results.json files; --force prints the available results{_of_voc(found)}"
        )
    sides = {dataset: list(groups.values()) for dataset, groups in found.items() if dataset not in partly}
    if partly:
        sides[" / ".join(partly)] = [
            Group(f"{name} on {dataset}", group.records, same=group.same)
            for dataset in partly
            for name, group in found[dataset].items()
        ]
    for groups in sides.values():
        _mark(groups, force)
    return sides


def score_table(dataset: str, groups: Sequence[Group], wanted: Sequence[str] = (), as_rows: bool = False) -> Table:
    """Return a Markdown table of scores in percent: mean, sample standard deviation, difference from the first group.

    Args:
        dataset: the title.
        groups: from :func:`compare`.
        wanted: names of scores; by default the main scores that all groups have.
        as_rows: use one row per group, without differences.

    Raises:
        OvsegError: a group lacks one of the scores in ``wanted``.
    """
    scores = [[_scores(record) for record in group.records] for group in groups]
    names = list(wanted) or _main_scores([one for group in scores for one in group])
    for group, own in zip(groups, scores, strict=True):
        if lacking := [name for name in names if any(name not in one for one in own)]:
            there = ", ".join(name for name in own[0] if not name.startswith(_OF_CLASSES))
            raise OvsegError(f"{group.name} has no {lacking[0]} on {dataset}: choose --scores among {there}")
    values = [[[one[name] for one in own] for name in names] for own in scores]
    table = Table(box=box.MARKDOWN)
    table.add_column(dataset, no_wrap=True)
    for column in names if as_rows else [group.title for group in groups]:
        table.add_column(column, justify="right", no_wrap=True)
    if as_rows:
        for group, own in zip(groups, values, strict=True):
            table.add_row(group.title, *map(_spread, own))
    else:
        for row, name in enumerate(names):
            first = statistics.fmean(values[0][row])
            table.add_row(name, _spread(values[0][row]), *(_spread(own[row], first) for own in values[1:]))
    return table


def setting_lines(groups: Sequence[Group]) -> list[str]:
    """Return a line ``KEY: value | value ...``, one value per group, for each setting in which the groups differ."""
    settings = [[flatten({key: record.get(key) for key in _SETTINGS}) for record in group.records] for group in groups]
    keys = list(dict.fromkeys(key for group in settings for one in group for key in one))
    lines = []
    for key in keys:
        values = [list(dict.fromkeys(short(one.get(key)) for one in group)) for group in settings]
        if len({tuple(value) for value in values}) > 1 and not _EXPECTED.match(key):
            lines.append(f"{key}: {' | '.join(value[0] if len(value) == 1 else 'various' for value in values)}")
    return lines


def _mark(groups: Sequence[Group], force: bool) -> None:
    first = groups[0]
    for group in groups:
        found = [text for record in group.records for text in _unlike(first.records[0], record)]
        group.unlike = list(dict.fromkeys(found))
        if group.unlike and not force:
            raise OvsegError(
                f"{first.name} and {group.name} must not be compared: {'; '.join(group.unlike)}. --force prints them "
                "anyway, marked"
            )


def _of_voc(found: Mapping[str, Mapping[str, Group]]) -> str:
    """Return a sentence about the protocols of PASCAL VOC, if runs have several."""
    protocols = [next(iter(groups.values())).records[0]["protocol"] for groups in found.values()]
    of_voc = [protocol for protocol in protocols if str(protocol.get("tag")).startswith("PAS-")]
    if len({protocol["tag"] for protocol in of_voc}) < 2:
        return ""
    rules = [
        f"{protocol['tag']} (background: {protocol.get('background')}, {protocol.get('num_classes')} classes)"
        for protocol in of_voc
    ]
    return f". {' and '.join(rules)} are different protocols of PASCAL VOC, 13 to 17 points apart for one model"


def _unlike(first: Record, other: Record) -> list[str]:
    kept = [{key: record[key] for key in _MUST_AGREE} for record in (first, other)]
    if all(record.get("sg_iou") for record in (first, other)):  # the rest can be compared if only one has it
        for agree, record in zip(kept, (first, other), strict=True):
            agree["sg_iou_table"] = digest_of(record["sg_iou"]["fathers"])[:12]
    if all(record.get("proposal_recall") for record in (first, other)):
        for agree, record in zip(kept, (first, other), strict=True):
            agree["proposal_recall.segments"] = record["proposal_recall"]["segments"]
    return differences(*kept, form="{} is {} / {}")


def _output_folder(run: Path) -> Path:
    """Return the OUTPUT_DIR of a run; for a results.json that was copied elsewhere, its path without the suffix."""
    if run.is_file():
        return run.parents[2] if run.parent.parent.name == "inference" else run.with_suffix("")
    if (run / RECORD_FILE).is_file() and run.parent.name == "inference":
        return run.parents[1]
    return run.parent if run.name == "inference" and not (run / "inference").is_dir() else run


def _scores(record: Record) -> dict[str, float]:
    return {name: value for task in record["results"].values() for name, value in task.items()}


def _main_scores(all_scores: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the names of the mean scores that all runs have, each once; those of subsets stand in the middle."""
    subsets = [name for name in all_scores[0] if name.startswith(("mIoU-", "hIoU-")) and name not in _FIRST_SCORES]
    subsets.sort(key=lambda name: name.startswith("mIoU-un"))  # of two subsets, one is all but the other
    shown = [*_FIRST_SCORES]
    for name in subsets:
        values = [scores.get(name) for scores in all_scores]
        if all([scores.get(other) for scores in all_scores] != values for other in shown if other in subsets):
            shown.append(name)
    return [name for name in [*shown, *_LAST_SCORES] if all(name in scores for scores in all_scores)]


def _spread(values: Sequence[float], first: float = math.nan) -> str:
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{spread}" + ("" if math.isnan(first) else f" ({mean - first:+.2f})")
