"""``ovseg check``: look at a data set before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    dataset: Annotated[
        str, typer.Argument(metavar="NAME|YAML", help="A registered data set, or a YAML file that describes yours.")
    ],
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw some images with their labels (.png, .jpg).")
    ] = None,
    sheet_images: Annotated[int, typer.Option(metavar="N", min=1, help="How many.")] = 12,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Open N pairs only, evenly spread.")] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads; default: one for each CPU, at most 8.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything that is found; - is the terminal.")
    ] = None,
) -> int:
    """Check a data set: pairs, broken files, sizes, label values, class histogram, a contact sheet.

    The exit status is 0 if nothing is wrong, 1 if something is, 2 if there is no such data set.
    """
    from ovseg.cli.check_report import check_and_show  # imports slowly: after the arguments are checked

    return check_and_show(dataset, sheet=sheet, sheet_images=sheet_images, limit=limit, workers=workers, json_file=json)
