"""The progress bar of long operations."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(*fields: str, console: Console | None = None, show: bool = True, transient: bool = False) -> Progress:
    """Return a progress bar with a description, the count, and the remaining time.

    Args:
        fields: formats of further columns, such as ``"{task.fields[speed]:.1f} pairs/s"``; the task needs these fields.
        console: console to draw on; by default, standard error.
        show: whether to draw the bar.
        transient: remove the bar at the end.
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
