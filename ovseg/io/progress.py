"""The progress bar of all long work."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(*fields: str, console: Console | None = None, show: bool = True, transient: bool = False) -> Progress:
    """A bar with what is done, how many of how many, and the time left.

    Args:
        fields: formats of further columns, such as ``"{task.fields[speed]:.1f} pairs/s"``; the task needs these fields.
        console: where to draw; by default, standard error.
        show: draw it at all.
        transient: remove it when the work is done.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(field) for field in fields),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
        disable=not show,
        transient=transient,
    )
