"""What ``from_pretrained`` takes: names of the table, folders of ``save_pretrained``, repositories of the hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ovseg.config import joined_options
from ovseg.config.errors import explain_config_errors
from ovseg.config.files import BASE, CONFIGS, PATHS
from ovseg.config.values import leaves
from ovseg.errors import OvsegError, shown
from ovseg.hub.card import ModelCard
from ovseg.hub.fetch import fetch
from ovseg.hub.inside import check_clip, is_permitted
from ovseg.hub.saving import CLIPS, LEFT_OUT, SAM_MODEL, SECTIONS
from ovseg.hub.table import AUTO, CARD, CONFIG, HUB, SAVED, WEIGHTS, WORDS, Model, choose, find
from ovseg.hub.words import read_words
from ovseg.io.devices import find_device
from ovseg.io.files import expand_user, is_dir, is_file
from ovseg.io.plain_yaml import load_plain, read_text
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

OF_THE_MACHINE = ("MODEL.DEVICE", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR")  # they do not change the model
_TRANSFORMERS = {"photo": (4, 45), "bert": (4, 45), "sam": (5, 0)}  # oldest version of each extra


@dataclass(frozen=True)
class Found:
    """A model that is on this machine.

    Attributes:
        name: for people.
        config: configuration file.
        opts: keys over it, in any form of :func:`ovseg.config.load_cfg`.
        vocabulary: words that the model is asked for if a call names none; None if it has none.
        card: what is known of it.
    """

    name: str
    config: str
    opts: Sequence[Any] | Mapping[str, Any] = ()
    vocabulary: Vocabulary | None = None
    card: ModelCard = field(default_factory=ModelCard)

    def with_options(self, opts: Sequence[Any] | Mapping[str, Any], network: bool = True) -> Found:
        """Return the model with keys over its own. Licence and figures are lost with keys that change the model.

        Raises:
            OvsegError: a value is an address, and downloads are not permitted.
        """
        own = joined_options((), opts)
        if not network and (urls := [value for value in own[1::2] if "://" in str(value)]):
            raise OvsegError(f"{urls[0]} would be downloaded, and local_files_only is set: name your copy of it")
        changed = any(key.startswith("MODEL.") and key not in OF_THE_MACHINE for key in own[::2])
        card = ModelCard(name=self.name) if changed else self.card
        return replace(self, opts=joined_options(self.opts, own), card=card)


def open_model(source: str | Path, *, revision: str = "", network: bool = True, device: str | None = None) -> Found:
    """Return what a name or folder stands for; weights of the hub are downloaded if necessary.

    Args:
        source: see :meth:`ovseg.segmenter.Segmenter.from_pretrained`.
        revision: of a repository on the hub.
        network: permit downloads.
        device: on which it will run; only "auto" depends on it.

    Raises:
        OvsegError: there is no such model, it cannot be fetched, or its folder is incomplete.
    """
    text = os.fspath(source)
    if revision and not text.startswith(HUB):
        raise OvsegError(f"revision is {shown(revision)}, but {shown(text)} is not on the hub: leave it out")
    if text.startswith(HUB):
        repository, _, of_name = text.removeprefix(HUB).partition("@")
        folder = fetch(repository, SAVED, revision=revision or of_name, network=network)
        return open_folder(folder, repository)
    path = expand_user(text) if text else Path("?")
    if is_dir(path):
        return open_folder(path, path.resolve().name)
    if is_file(path):
        raise OvsegError(
            f"{path} is a file: give the folder of save_pretrained, or use Segmenter.from_config(CONFIG, weights=FILE)"
        )
    if text.count("/") == 1 and not text.startswith((".", "/", "~", "toy/")):
        raise OvsegError(f"there is no folder {text}: write {HUB}{text} for the model of this name on the hub")
    if "/" in text or os.sep in text:
        raise OvsegError(f"there is no folder {text}: give one that save_pretrained has written")
    return open_row(_automatic(device) if text == AUTO else find(text), network)


def located(name: str, opts: Sequence[Any] = (), device: str | None = None) -> tuple[str, list[Any]]:
    """Return configuration file and options of a model by its name, for ``from_config``; see :func:`open_model`."""
    found = open_model(name, device=device).with_options(opts)
    return found.config, list(found.opts)


def open_row(row: Model, network: bool = True, update: bool = False) -> Found:
    """Return a model of the table, whose files are fetched; see :func:`open_model`."""
    opts = dict(row.opts)
    if lacks := _lacks(row.extra):
        raise OvsegError(f"{row.name} needs {lacks}: run `pip install 'ovseg[{row.extra}]'`")
    for file in row.files:
        if file.page:
            raise OvsegError(
                f"{row.name} ({file.title}, {file.licence}) cannot be fetched from here: get it from the {file.page}, "
                f"and use Segmenter.from_config({Path(row.config).stem!r}, weights=FILE)"
            )
        if file.hub:
            folder = fetch(
                file.hub, file.wanted, revision=file.revision, sha256=file.sha256, network=network, update=update
            )
            opts[file.key] = str(folder / file.value)
    return Found(row.name, str(CONFIGS / row.config), opts, None, ModelCard.of_model(row))


def open_folder(folder: Path, name: str) -> Found:
    """Return the model of a folder of ``save_pretrained``, none of whose keys leads out of the folder.

    Raises:
        OvsegError: it is not such a folder, a file is missing, or a key names a file elsewhere.
    """
    config = folder / CONFIG
    if not is_file(config):
        raise OvsegError(f"{folder} has no {CONFIG}: give a folder that save_pretrained has written completely")
    text = read_text(config, "configuration file")
    with explain_config_errors({}, str(config), text):
        content = load_plain(text)
    if not isinstance(content, dict) or (wrong := [key for key in content if key not in SECTIONS]):
        what = shown(wrong[0]) if isinstance(content, dict) else shown(content)
        use = f"use Segmenter.from_config({str(config)!r})" if what != shown(BASE) else "name files of the folder only"
        raise OvsegError(f"{config} is not of save_pretrained, it has {what}: {use}")
    values = dict(leaves(content))
    if values.get("MODEL.WEIGHTS") != f"./{WEIGHTS}":
        raise OvsegError(f"{config} does not name ./{WEIGHTS} as MODEL.WEIGHTS: it is not of save_pretrained")
    for key in {*PATHS, *LEFT_OUT}:
        value = values.get(key)
        if not isinstance(value, str) or not value:
            continue
        if not is_permitted(key, value):
            raise OvsegError(f"{key} in {config} is {shown(value)}, outside of the folder: do not use this model")
        if value.startswith("./") and not (folder / value).exists():
            raise OvsegError(f"{folder} lacks {value.removeprefix('./')}: copy or download the whole folder again")
        if key in CLIPS and value.startswith("./"):
            check_clip(folder / value)
    if values.get("MODEL.PROPOSER.NAME") == "SAM" and not values.get(SAM_MODEL):
        raise OvsegError(f"{config} names no {SAM_MODEL}: it is not of save_pretrained")
    words = folder / WORDS
    vocabulary = read_words(words) if is_file(words) else None
    return Found(name, str(config), {}, vocabulary, ModelCard.read(folder / CARD) or ModelCard(name=name))


def _lacks(extra: str) -> str:
    """Return what is missing of an extra of this package, or too old, as it is in pyproject.toml; "" if nothing is."""
    if extra not in _TRANSFORMERS:
        return ""
    needed = _TRANSFORMERS[extra]
    wanted = "transformers " + ".".join(map(str, needed))
    try:
        found = version("transformers")
    except PackageNotFoundError:
        return f"{wanted}, and it is not installed"
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    return "" if numbers >= needed else f"{wanted}, and {found} is installed"


def _automatic(device: str | None) -> Model:
    """Return the composition that suits a device; None for the GPU if there is one."""
    chosen = find_device(device, "--device") if device else None
    kind = chosen.type if chosen else "cuda" if torch.cuda.is_available() else "cpu"
    memory = 0.0
    if kind == "cuda" and torch.cuda.is_available():
        index = chosen.index if chosen else 0
        memory = torch.cuda.get_device_properties(index or 0).total_memory / 1e9
    row = choose(kind, memory, extras=not _lacks("sam"))
    logger.info("auto: %s (%s) for %s", row.name, row.system, kind)
    return row
