"""The work of ``ovseg export``: the model is loaded, its graphs are written, and a table of them is printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ovseg.export.writing import TOLERANCE, Checked, check_folder, check_packages, export
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import Vocabulary


def run_export(
    model: str,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    opts: Sequence[Any],
    format: str,
    **settings: Any,
) -> int:
    """Export a model and print what was written; returns 0.

    Args:
        model: see :meth:`ovseg.segmenter.Segmenter.from_name`.
        vocabulary, folder, format, settings: see :func:`ovseg.export.writing.export`.
        opts: keys of the configuration.

    Raises:
        OvsegError: see :func:`ovseg.export.writing.export`.
    """
    check_packages(format)
    check_folder(folder)
    segmenter = Segmenter.from_name(model, opts, "cpu")
    check_folder(folder, segmenter.name, format)
    segmenter.prepare(vocabulary)
    console = Console(soft_wrap=True, highlight=False)
    table = Table("graph", "largest difference", "eager", "exported", "ratio", "size")

    def add(row: Checked) -> None:
        times = f"{1000 * row.eager:.1f} ms", f"{1000 * row.exported:.1f} ms", f"{row.eager / row.exported:.2f}"
        table.add_row(row.name, f"{row.difference:.1e}", *times, f"{row.size / 1e6:.1f} MB")

    plan = export(segmenter, vocabulary, folder, format=format, report=add, **settings)
    console.print(table)
    for name, reason in plan.left_out.items():
        console.print(f"not exported: {name}: {reason}", markup=False)
    console.print(f"differences of float32 are at most {TOLERANCE:.0e}; one thread; {folder}", markup=False)
    return 0
