"""``ovseg models``: list the models that there are by name, show one, download its files."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Action = Literal["list", "show", "download"]


def models(
    action: Annotated[Action, typer.Argument(help="What to do.")] = "list",
    name: Annotated[
        str, typer.Argument(metavar="NAME", help='Of show and download: a name of the list, or "hf-hub:ORG/NAME".')
    ] = "",
    permissive: Annotated[
        bool, typer.Option("--permissive", help="List those whose licences permit commercial use.")
    ] = False,
    revision: Annotated[str, typer.Option(metavar="REV", help='Of "hf-hub:ORG/NAME": branch, tag or commit.')] = "",
    update: Annotated[bool, typer.Option("--update", help="Download the newest commit of a branch.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """List models with their licences, sizes, figures and sources; show one; download its files.

    Segmenter.from_pretrained(NAME) takes the same names. Downloads continue where they stopped, and each file is
    verified by its checksum. HF_HUB_OFFLINE, HF_ENDPOINT and OVSEG_CACHE (where files go) count.
    """
    from ovseg.cli.models_report import download, list_models, refuse_options, show

    refuse_options(action, name, permissive=permissive, revision=revision, update=update, json=json)
    if action == "list":
        return list_models(permissive, json)
    return show(name, json) if action == "show" else download(name, revision, update)
