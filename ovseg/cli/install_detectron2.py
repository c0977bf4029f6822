"""``ovseg install-detectron2``: the library that models and training stand on, which no index has under its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def install_detectron2(
    source: Annotated[
        Literal["pypi", "git"] | None,
        typer.Option(
            help="pypi: 0.6 in pure Python, no compiler; git: the official repository, compiled on this machine; "
            "default: the installed one, else pypi."
        ),
    ] = None,
    sdist: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The downloaded pb1-detectron2-0.6.tar.gz, without a network.")
    ] = None,
) -> None:
    """Install Detectron2 into this environment, unless it is there; a named source replaces another build."""
    from ovseg.environment.detectron2 import install

    install(source, sdist)
