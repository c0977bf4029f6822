"""The progress bar of long operations."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SLOW = 10.0  # seconds


def progress_bar(*fields: str, console: Console | None = None, show: bool = True, transient: bool = False) -> Progress:
    """Return a progress bar with a description, the count, and the remaining time.

    Args:
        fields: formats of further columns, such as ``"{task.fields[speed]:.1f} pairs/s"``; the task needs these fields.
        console: console to draw on; by default, standard error.
        show: whether to draw the bar.
        transient: remove the bar at the end.
    """
    # imports slowly, and most uses of the package show no bar
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


@contextlib.contextmanager
def slow_progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Give a function to be called after each of ``total`` steps, for work that is often too short for a bar.

    A bar appears on a terminal once the steps are seen to take longer than :data:`SLOW` altogether.
    """
    start, done = time.monotonic(), 0
    progress = progress_bar(show=sys.stderr.isatty(), transient=True)
    task = progress.add_task(description, total=total)

    def advance() -> None:
        nonlocal done
        done += 1
        progress.update(task, completed=done)
        if not progress.live.is_started and (time.monotonic() - start) / done * total > SLOW:
            progress.start()

    try:
        yield advance
    finally:
        progress.stop()
