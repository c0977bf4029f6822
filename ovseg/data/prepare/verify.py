"""Checking prepared data sets against :mod:`ovseg.data.prepare.facts`: what is wrong, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ovseg.data.prepare.check_folder import Report, check_folder
from ovseg.data.prepare.facts import Folder
from ovseg.data.prepare.sources import NothingFound, scan
from ovseg.io.progress import progress_bar

MOST_SHOWN = 20  # faults of one folder that are printed


def verify(
    root: Path,
    folders: Sequence[Folder],
    workers: int,
    partial: bool = False,
    checks: Sequence[Callable[[Path], Iterable[str]]] = (),
) -> int:
    """Check those of ``folders`` that are there; print a line for each folder, then one for each fault.

    Args:
        root: folder of all data sets.
        folders: those of one script.
        workers: threads that read label files.
        partial: accept folders that lack files, as in a part of a data set.
        checks: the script's own; each yields faults.

    Returns:
        Exit status: 0 if everything is as it should be, else 1.

    Raises:
        NothingFound: none of the prepared folders is there.
    """
    console = Console()
    sizes = {folder: len(scan(root / folder.path, folder.suffix, folder.recursive)) for folder in folders}
    if not any(sizes[folder] for folder in folders if folder.made):
        made = " or ".join(str(root / folder.path) for folder in folders if folder.made)
        raise NothingFound(f"nothing is prepared yet: there are no files in {made}")
    reports = []
    with progress_bar(console=console, transient=True) as bar:
        for folder in folders:
            if sizes[folder]:
                task = bar.add_task(folder.path, total=sizes[folder])
                reports.append(check_folder(root, folder, workers, lambda task=task: bar.advance(task)))
    own = [fault for check in checks for fault in check(root)]
    _print(console, reports, [folder.path for folder in folders if not sizes[folder]], own)
    wrong = bool(own) or any(report.faults for report in reports)
    incomplete = any(report.incomplete for report in reports)
    if wrong:
        verdict = "WRONG: see the lines above"
    elif incomplete:
        verdict = "right as far as it goes, but incomplete" + ("" if partial else "; --partial accepts that")
    else:
        verdict = "complete and right"
    console.print(f"verdict: {verdict}", soft_wrap=True, highlight=False)
    return int(wrong or (incomplete and not partial))


def _print(console: Console, reports: Sequence[Report], absent: Sequence[str], own: Sequence[str]) -> None:
    def line(state: str, text: str, color: str) -> None:
        console.print(f"[{color}]{state:<10}[/]", escape(text), soft_wrap=True, highlight=False)

    for report in reports:
        text = f"{report.folder.path}/*{report.folder.suffix}: {report.files:,} files"
        if report.left_out:
            text += f", {report.left_out:,} left out (every pixel is ignored)"
        if report.unknown and not report.faults:
            text += f", {report.unknown:,} not yet compared with their sources (run the script without --verify)"
        if report.incomplete:
            line("incomplete", f"{text}; {report.incomplete}", "yellow")
        if report.faults:
            line("WRONG", f"{text}; {len(report.faults):,} faults, see below", "red")
        if not (report.incomplete or report.faults):
            line("right", text, "green")
    for path in absent:
        line("not there", path, "dim")
    for faults in (*(report.faults for report in reports), own):
        for fault in faults[:MOST_SHOWN]:
            console.print(fault, soft_wrap=True, highlight=False, markup=False)
        if len(faults) > MOST_SHOWN:
            console.print(f"... and {len(faults) - MOST_SHOWN:,} more like these", highlight=False)
