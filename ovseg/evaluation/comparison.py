"""Which results may be put side by side, and the table of those that may."""

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
from ovseg.evaluation.record import RECORD_FILE, read_record, record_files

Record = Mapping[str, Any]

_MUST_AGREE = ("protocol", "num_images", "file_list_sha256", "miou_convention")
_FIRST_SCORES = ("mIoU", "mIoU-union", "mIoU-gt")
_LAST_SCORES = ("pACC", "mACC", "fwIoU", "SG-mIoU", "recall@0.5", "mean-best-IoU")
_SETTINGS = ("weights", "oracle", "views", "config", "versions", "git_commit", "device")
_EXPECTED = re.compile(
    r"config\.(OUTPUT_DIR|SEED|DATASETS\.TEST|MODEL\.WEIGHTS)$"
)  # differ, or are told by the weights


@dataclass
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: of their output folders.
        records: of one data set, at least one.
        unlike: in what the data and protocol differ from the first group's; empty if they may be compared.
        same: a sentence for each run given that is the same as another one; in a group, it is counted once.
    """

    name: str
    records: list[Record]
    unlike: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The name, with what must not be overlooked."""
        oracle = self.records[0]["oracle"]
        several = f" ({len(self.records)} runs)" if len(self.records) > 1 else ""
        return self.name + (" *" if self.unlike else "") + (f" (oracle {oracle['oracle']})" if oracle else "") + several


def read_run(run: Path) -> list[Record]:
    """The records of a run, one for each data set; see :func:`ovseg.evaluation.record.record_files`.

    Raises:
        OvsegError: there is no finished evaluation, or one that cannot be read.
    """
    return [read_record(file) for file in record_files(run)]


def group_names(runs: Sequence[Path]) -> list[str]:
    """Names of the output folders without the seed (``_0``, ``_1``, ...); with more of the path where two are alike."""
    folders = [_output_folder(run.resolve()) for run in runs]
    names = []
    for folder in folders:
        alike = {other for other in folders if other.name == folder.name}
        names.append(re.sub(r"_\d+$", "", folder.name if len(alike) == 1 else f"{folder.parent.name}/{folder.name}"))
    return names


def compare(runs: Sequence[Path], force: bool = False) -> dict[str, list[Group]]:
    """Put runs side by side.

    Args:
        runs: each an ``OUTPUT_DIR`` or a ``results.json``.
        force: also what must not be compared; see :attr:`Group.unlike`.

    Returns:
        groups in the order given, by data set. With ``force``, those of data sets that not all have come as one.

    Raises:
        OvsegError: unreadable runs; or, without ``force``, runs on different data sets, images or labels, under
            different protocols or conventions. The message tells in what they differ.
    """
    found: dict[str, dict[str, Group]] = {}
    given: dict[str, Path] = {}
    names = group_names(runs)
    for name, run in zip(names, runs, strict=True):
        for record in read_run(run):
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
            "sets, or single results.json files; --force prints what there is"
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
    """Markdown table of scores in percent: mean, spread of the sample, and difference from the first group.

    Args:
        dataset: the title.
        groups: from :func:`compare`.
        wanted: names of scores; empty means the main ones that all have.
        as_rows: a row for each group, without differences.

    Raises:
        OvsegError: a group lacks a score that is wanted.
    """
    scores = [[_scores(record) for record in group.records] for group in groups]
    names = list(wanted) or _main_scores([one for group in scores for one in group])
    for group, own in zip(groups, scores, strict=True):
        if lacking := [name for name in names if any(name not in one for one in own)]:
            there = ", ".join(name for name in own[0] if not name.startswith(("IoU-", "ACC-", "SG-IoU-", "SG-ACC-")))
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
            others = (_spread(own[row]) + _difference(statistics.fmean(own[row]) - first) for own in values[1:])
            table.add_row(name, _spread(values[0][row]), *others)
    return table


def setting_lines(groups: Sequence[Group]) -> list[str]:
    """``KEY: value | value ...`` for each setting in which the groups differ, a value for each group."""
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
        for record in group.records:
            told = [text for text in _unlike(first.records[0], record) if text not in group.unlike]
            group.unlike.extend(told)
        if group.unlike and not force:
            raise OvsegError(
                f"{first.name} and {group.name} must not be compared: {'; '.join(group.unlike)}. --force prints them "
                "nevertheless, marked"
            )


def _unlike(first: Record, other: Record) -> list[str]:
    kept = [{key: record[key] for key in _MUST_AGREE} for record in (first, other)]
    if all(record.get("sg_iou") for record in (first, other)):  # the rest can be compared if only one has it
        for agree, record in zip(kept, (first, other), strict=True):
            agree["sg_iou_table"] = digest_of(record["sg_iou"]["fathers"])[:12]
    return differences(*kept, form="{} is {} / {}")


def _output_folder(run: Path) -> Path:
    """The OUTPUT_DIR; for a copy of a results.json elsewhere the file without suffix."""
    if run.is_file():
        return run.parents[2] if run.parent.parent.name == "inference" else run.with_suffix("")
    if (run / RECORD_FILE).is_file() and run.parent.name == "inference":
        return run.parents[1]
    return run.parent if run.name == "inference" and not (run / "inference").is_dir() else run


def _scores(record: Record) -> dict[str, float]:
    return {name: value for task in record["results"].values() for name, value in task.items()}


def _main_scores(all_scores: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of the mean scores that all have; the subsets' come between those of all classes, none of them twice."""
    subsets = [name for name in all_scores[0] if name.startswith(("mIoU-", "hIoU-")) and name not in _FIRST_SCORES]
    subsets.sort(key=lambda name: name.startswith("mIoU-un"))  # of two subsets, one is all but the other
    shown = [*_FIRST_SCORES]
    for name in subsets:
        values = [scores.get(name) for scores in all_scores]
        if all([scores.get(other) for scores in all_scores] != values for other in shown if other in subsets):
            shown.append(name)
    return [name for name in [*shown, *_LAST_SCORES] if all(name in scores for scores in all_scores)]


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return "-"
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def _difference(value: float) -> str:
    return "" if math.isnan(value) else f" ({value:+.2f})"
