"""The table of models (``models.json``): what there is, under which licence, how large, how good, and where from.

What is not known is ``null`` there: no figure, size or checksum is a guess.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovseg.errors import OvsegError, shown
from ovseg.io.files import is_dir, is_file
from ovseg.io.shipped import shipped

_TABLE = Path(__file__).with_name("models.json")
AUTO = "auto"
HUB = "hf-hub:"  # before names of repositories on the Hugging Face hub
# files of a folder of save_pretrained, and patterns of all that may be in it
CONFIG, WEIGHTS, WORDS, CARD = "config.yaml", "model.safetensors", "vocabulary.json", "README.md"
SAVED = (CONFIG, WEIGHTS, f"{CARD}*", f"{WORDS}*", "clip/*", "sam/*", "files/*")


@dataclass(frozen=True)
class ModelFile:
    """Weights that a model reads.

    Attributes:
        title: what it is.
        licence: of this file.
        size: bytes; None if unknown.
        sha256: by name of the file; names without a known one are left out.
        hub: repository on the Hugging Face hub, if it is fetched there; else "".
        revision: commit there that is used; "" for the newest at the first download, which is recorded then.
        wanted: names or patterns of its files there.
        key: configuration key that takes the file.
        value: name of the file that the key takes; "." for the folder.
        path: place in this package, of files that come with it, from the folder with ``configs``; else "".
        package: name in :mod:`ovseg.checkpoint.packaged`, of files that Python packages ship; else "".
        page: where it can be got by hand, of other files; else "".
    """

    title: str
    licence: str
    size: int | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    hub: str = ""
    revision: str = ""
    wanted: tuple[str, ...] = ()
    key: str = ""
    value: str = "."
    path: str = ""
    package: str = ""
    page: str = ""


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        name: what :meth:`ovseg.segmenter.Segmenter.from_pretrained` takes.
        system, summary, data, protocol, source: sentences for people.
        licence: of the whole, an SPDX identifier or several.
        permissive: whether commercial use is permitted by all of its files.
        config: file below ``configs/``.
        opts: configuration keys over the file.
        figures: measured or published values, by what they are; empty if there are none.
        files: weights.
        auto: GB of memory from which :func:`choose` takes it, by type of device.
        extra: of this package, which it needs; "" for none.
    """

    name: str
    system: str
    summary: str
    licence: str
    permissive: bool
    config: str
    source: str
    data: str = ""
    protocol: str = ""
    opts: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[ModelFile, ...] = ()
    auto: Mapping[str, float] = field(default_factory=dict)
    extra: str = ""

    @property
    def size(self) -> int | None:
        """Bytes of all files; None if that of one is unknown."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def place(self) -> str:
        """Where the files are: here, package, hub, or page for files that must be got by hand."""
        kinds = ("page", "hub", "package")
        return next((kind for kind in kinds if any(getattr(file, kind) for file in self.files)), "here")


@functools.cache
def models() -> dict[str, Model]:
    """Return the rows of the table by name, in its order."""
    rows = json.loads(_TABLE.read_text(encoding="utf-8"))
    shared = {name: ModelFile(**_tuples(row, "wanted")) for name, row in rows["files"].items()}
    return {
        name: Model(name=name, **row | {"files": tuple(shared[file] for file in row["files"])})
        for name, row in rows["models"].items()
    }


def find(name: str) -> Model:
    """Return a row of the table.

    Raises:
        OvsegError: there is none of this name.
    """
    if name in models():
        return models()[name]
    near = difflib.get_close_matches(name, models(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`ovseg models` lists the names"
    raise OvsegError(
        f"there is no model {shown(name)}: {hint} Folders of save_pretrained and {HUB}ORGANISATION/NAME are models, too"
    )


def is_model(name: str) -> bool:
    """Return whether a name is for ``from_pretrained``, not for ``from_config``; also of a model that is misspelt.

    The names of configuration files win.
    """
    if name == AUTO or name.startswith(HUB):
        return True
    if is_file(name) or is_file(shipped("configs") / f"{name}.yaml"):
        return False
    return is_dir(name) or name in models() or bool(difflib.get_close_matches(name, models(), n=1, cutoff=0.7))


def choose(device: str, memory: float, extras: bool = True) -> Model:
    """Return the best composition under permissive licences for a device.

    Args:
        device: type of the device: "cpu", "cuda", "mps", ...
        memory: of it, GB.
        extras: whether packages of extras, such as Segment Anything's, may be needed.
    """
    kind = "cuda" if device == "cuda" else "cpu"  # others have no figures of their own
    fitting = [row for row in models().values() if kind in row.auto and row.auto[kind] <= memory]
    fitting = [row for row in fitting if extras or not row.extra]
    fitting = fitting or [row for row in models().values() if row.auto.get("cpu") == 0]
    return max(fitting, key=lambda row: row.auto.get(kind, 0))


def _tuples(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: tuple(value) if key in names else value for key, value in row.items()}
