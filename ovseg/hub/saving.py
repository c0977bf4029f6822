"""Writing of a whole segmenter to a folder that needs nothing else: ``save_pretrained``.

::

    FOLDER/config.yaml          keys that differ from the defaults; written last, so that it marks a complete folder
    FOLDER/model.safetensors    all weights, those of CLIP included
    FOLDER/vocabulary.json      words, if some were given
    FOLDER/README.md            the model card
    FOLDER/clip/, sam/, files/  configurations, tokenizers and other networks that the keys name
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from torch import Tensor, nn

from ovseg.checkpoint import save_safetensors
from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.model import PACKAGED
from ovseg.config import get_cfg
from ovseg.config.files import PATHS
from ovseg.config.per_dataset import KEY as PER_DATASET
from ovseg.config.per_dataset import is_path
from ovseg.config.values import leaves
from ovseg.errors import OvsegError, shown
from ovseg.hub.card import UNKNOWN, ModelCard, is_card_of_ours
from ovseg.hub.inside import is_permitted
from ovseg.hub.table import CARD, CONFIG, WEIGHTS, WORDS
from ovseg.hub.words import words_text
from ovseg.io.files import (
    atomic_path,
    explained_writing,
    file_digest,
    is_dir,
    is_file,
    locked_folder,
    temporary_name,
    write_text,
)
from ovseg.proposals.boundary_tree import BoundaryTree
from ovseg.proposals.sam import SAM
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_OURS = (CONFIG, WEIGHTS, WORDS, "clip", "sam", "files", CARD)  # all that a folder may have
SECTIONS = ("MODEL", "INPUT", "TEST", "VERSION")
SAM_MODEL, _TREE = "MODEL.PROPOSER.SAM.MODEL", "MODEL.PROPOSER.BOUNDARY_TREE"
_ENCODER, _TOKENS = "MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG", "MODEL.OVSEGMENTOR.TEXT_ENCODER.VOCAB"
CLIPS = {  # CLIP's name, and its weights
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS",
    "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED": "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS",
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME": "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_WEIGHTS",
}
# what only this machine, a training or an evaluation uses
LEFT_OUT = (
    *("MODEL.WEIGHTS", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", *CLIPS.values(), "MODEL.TIMM.WEIGHTS"),
    *("MODEL.OVSEGMENTOR.IMG_ENCODER.IMGNET_PRETRAINED_CHECKPOINT", "MODEL.OVSEGMENTOR.STAGE1_CHECKPOINT"),
    *("MODEL.OVSEGMENTOR.TEXT_ENCODER.WEIGHTS", "INPUT.CAPTION.WORD_FILE", "INPUT.CAPTION.WORDS"),
    *("INPUT.TEXT_AUG.ENTITIES", "TEST.SG_IOU_TABLE", "TEST.VOCABULARY", "TEST.SAVE_PREDICTIONS", "TEST.REPORT"),
    *("TEST.VIS_MODES", "TEST.SAVE_BEST", "TEST.ORACLE", "TEST.ZERO_SHOT.NAMES", "TEST.ZERO_SHOT.ROOT"),
    "TEST.ZERO_SHOT.FILE",
)


def save(
    folder: Path, model: nn.Module, cfg: CfgNode, card: ModelCard, vocabulary: Vocabulary | None = None
) -> dict[str, tuple[int, str]]:
    """Write a model to a folder; an older one of this package in it is replaced.

    Args:
        folder: is created if necessary.
        model: with its weights.
        cfg: its configuration.
        card: its card.
        vocabulary: words that it is asked for if a call names none.

    Returns:
        Size and sha256 of the files by name.

    Raises:
        OvsegError: the masks of the model are those of particular images; the folder has files of something else, or
            cannot be written; or the disk is full.
    """
    proposer, architecture = cfg.MODEL.PROPOSER.NAME, cfg.MODEL.META_ARCHITECTURE
    if proposer in ("MaskFiles", "GroundTruth") and architecture == "ProposeAndName":
        raise OvsegError(f"a model with the proposer {proposer} has masks of particular images: save one without it")
    if folder.exists() and not folder.is_dir():
        raise OvsegError(f"{folder} is a file: give a folder to save_pretrained")
    found = [name for name in _OURS if os.path.lexists(folder / name)]
    if found and not is_card_of_ours(folder / CARD):
        raise OvsegError(f"{folder} has {', '.join(found)} of something else: give another folder to save_pretrained")
    if card.licence == UNKNOWN:
        logger.warning("the card of %s names no licence: give card={'licence': ...} before you pass it on", folder)
    with locked_folder(folder, remedy="give another folder"), _beneath(folder) as new:
        values = _permitted(_values(cfg) | dict(_written(new, model, cfg)), cfg)
        save_safetensors(_state(model), new / WEIGHTS, {"format": "pt"})
        if vocabulary is not None:
            write_text(new / WORDS, words_text(vocabulary))
        write_text(new / CONFIG, yaml.safe_dump(_nested(values), sort_keys=False, allow_unicode=True))
        names = [CONFIG, *sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())]
        files = {name: ((new / name).stat().st_size, file_digest(new / name)) for name in names}
        write_text(new / CARD, card.text(files))
        (folder / CONFIG).unlink(missing_ok=True)  # without it, a folder that is killed meanwhile is no model
        os.replace(new / CARD, folder / CARD)  # with it, the next call may replace the folder
        for name in _OURS:
            if name not in (CARD, CONFIG, WEIGHTS):
                _remove(folder / name)
            if name != CONFIG and (new / name).exists():
                os.replace(new / name, folder / name)
        os.replace(new / CONFIG, folder / CONFIG)
    (folder / ".lock").unlink(missing_ok=True)
    return files


@contextlib.contextmanager
def _beneath(folder: Path) -> Iterator[Path]:
    """Yield a new folder in ``folder``, which is removed at the end: the model may be read from ``folder`` itself."""
    with temporary_name(folder / "saved") as new, explained_writing(folder):
        new.mkdir()
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _permitted(values: dict[str, Any], cfg: CfgNode) -> dict[str, Any]:
    """Return values without the names of files that the model does not use, and that are not in the folder.

    Raises:
        OvsegError: the text encoder is one of the hub, whose files are not known here.
    """
    wrong = [key for key in PATHS if isinstance(values.get(key), str) and values[key]]
    wrong = [key for key in wrong if not is_permitted(key, values[key])]
    if _ENCODER in wrong and cfg.MODEL.META_ARCHITECTURE == "OVSegmentor":
        raise OvsegError(f"{_ENCODER} is {shown(values[_ENCODER])}, of the hub: copy it here, and name its folder")
    return {key: value for key, value in values.items() if key not in wrong}


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model, also those that its own state lacks."""
    beyond = getattr(model, "loadable", {})
    return model.state_dict() | {
        f"{prefix}{name}": tensor for prefix, module in beyond.items() for name, tensor in module.state_dict().items()
    }


def _values(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys that differ from their defaults and belong to the model."""
    defaults = dict(leaves(get_cfg(), PER_DATASET))
    values = {
        key: copy.deepcopy(value)
        for key, value in leaves(cfg, PER_DATASET)
        if key.split(".")[0] in SECTIONS and key not in LEFT_OUT and value != defaults.get(key)
    }
    if values.get("MODEL.DEVICE", "cpu") != "cpu":  # one of this machine
        del values["MODEL.DEVICE"]
    if PER_DATASET in values:
        values[PER_DATASET] = {name: dict(keys) for name, keys in values[PER_DATASET].items() if not is_path(name)}
    return values | {"MODEL.WEIGHTS": f"./{WEIGHTS}", "VERSION": cfg.VERSION}


def _written(folder: Path, model: nn.Module, cfg: CfgNode) -> Iterator[tuple[str, Any]]:
    """Write what keys name, except the weights; yield each such key, and its new value."""
    values = dict(leaves(cfg, PER_DATASET))
    adapters = {adapter.source.name: adapter for adapter in _modules(model) if isinstance(adapter, ClipAdapter)}
    for key, weights in CLIPS.items():
        name = str(values[key])
        if name in adapters and (name.startswith(("hf-hub:", "local-dir:")) or _is_file(name, values[weights])):
            yield key, _write_clip(adapters[name], folder / "clip", key)
        elif name in adapters and values[weights] and not is_file(values[weights]) and values[weights] != "none":
            yield weights, values[weights]  # a tag, which decides on preprocessing
        elif is_file(name):
            yield key, _copy(name, folder, key)
    for part in getattr(model, "parts", ()):
        if isinstance(part, SAM):
            part.save(folder / "sam")
            yield SAM_MODEL, "./sam"
        elif isinstance(part, BoundaryTree):
            yield from ((f"{_TREE}.{name}", value) for name, value in part.chosen.items())
    for key in PATHS:
        if key in (*LEFT_OUT, *CLIPS, SAM_MODEL) or not isinstance(values.get(key), str) or not values[key]:
            continue
        if is_file(values[key]):
            yield key, _copy(values[key], folder, key)
        elif key == _ENCODER and is_dir(values[key]):
            target = folder / "files" / key.rpartition(".")[2].lower()
            for name in ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"):
                if is_file(Path(values[key]) / name):
                    _copy_to(Path(values[key]) / name, target / name)
            yield key, f"./{target.relative_to(folder).as_posix()}"
        if key == _ENCODER and is_file(values[key]):
            tokens = Path(values[key]).with_name("vocab.txt")
            if not values[_TOKENS] and tokens.is_file():
                yield _TOKENS, _copy(tokens, folder, "vocab")


def _is_file(name: str, weights: str) -> bool:
    return is_file(name) or is_file(weights)


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    yield from model.modules()
    for part in getattr(model, "parts", ()):
        for value in vars(part).values():
            if isinstance(value, nn.Module):
                yield value
        yield from part.modules()


def _write_clip(adapter: ClipAdapter, folder: Path, key: str) -> str:
    """Write the configuration of a CLIP, with its tokenizer where that is not CLIP's own; return its name."""
    folder = folder / "region" if "REGION" in key else folder
    architecture = copy.deepcopy(adapter.source.architecture)
    text = architecture["text_cfg"]
    tokenizer = getattr(getattr(adapter.text, "tokenizer", None), "tokenizer", None)
    if _is_own(text.get("hf_tokenizer_name")) and tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
        text["hf_tokenizer_name"] = "./tokenizer"
    encoder = getattr(getattr(adapter.clip_model, "text", None), "config", None)
    if _is_own(text.get("hf_model_name")) and encoder is not None:
        encoder.save_pretrained(folder / "text")
        text["hf_model_name"] = "./text"
    content = {"model_cfg": architecture, "preprocess_cfg": asdict(adapter.source.preprocessing)}
    write_text(folder / "clip.json", json.dumps(content, indent=2) + "\n")
    return "./clip/region/clip.json" if "REGION" in key else "./clip/clip.json"


def _is_own(name: str | None) -> bool:
    return bool(name) and not str(name).startswith(PACKAGED)


def _copy(source: str | Path, folder: Path, key: str) -> str:
    name = f"{key.rpartition('.')[2].lower()}{Path(source).suffix}"
    _copy_to(source, folder / "files" / name)
    return f"./files/{name}"


def _copy_to(source: str | Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in sorted(values.items()):
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = _plain(value)
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
