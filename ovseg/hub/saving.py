"""Writing of a whole segmenter to a folder that needs nothing else: ``save_pretrained``.

::

    FOLDER/config.yaml          keys that differ from the defaults; written last, so that it marks a complete folder
    FOLDER/model.safetensors    all weights, those of CLIP included
    FOLDER/vocabulary.json      words, if some were given
    FOLDER/README.md            the model card
    FOLDER/clip/, sam/, files/  configurations, tokenizers and other networks that the keys name
"""

from __future__ import annotations

import copy
import json
import logging
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
from ovseg.errors import OvsegError
from ovseg.hub.card import UNKNOWN, ModelCard, is_card_of_ours
from ovseg.hub.table import CARD, CONFIG, WEIGHTS, WORDS
from ovseg.io.files import atomic_path, file_digest, is_dir, is_file, locked_folder, write_text
from ovseg.proposals.boundary_tree import BoundaryTree
from ovseg.proposals.sam import SAM
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

SECTIONS = ("MODEL", "INPUT", "TEST", "VERSION")
_SAM, _TREE = "MODEL.PROPOSER.SAM.MODEL", "MODEL.PROPOSER.BOUNDARY_TREE"
_ENCODER, _TOKENS = "MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG", "MODEL.OVSEGMENTOR.TEXT_ENCODER.VOCAB"
_CLIPS = {  # CLIP's name, and its weights
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS",
    "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED": "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS",
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME": "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_WEIGHTS",
}
# what only this machine, a training or an evaluation uses
_LEFT_OUT = (
    *("MODEL.WEIGHTS", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", *_CLIPS.values(), "MODEL.TIMM.WEIGHTS"),
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
    card_file = folder / CARD
    if (card_file.exists() and not is_card_of_ours(card_file)) or (
        (folder / CONFIG).exists() and not card_file.exists()
    ):
        raise OvsegError(f"{folder} has a {CARD} or {CONFIG} of something else: give another folder to save_pretrained")
    if card.licence == UNKNOWN:
        logger.warning("the card of %s names no licence: give card={'licence': ...} before you pass it on", folder)
    with locked_folder(folder, remedy="give another folder"):
        (folder / CONFIG).unlink(missing_ok=True)  # without it, a folder that is killed meanwhile is no model
        for name in ("clip", "sam", "files", WORDS):
            _remove(folder / name)
        values = _values(cfg) | dict(_written(folder, model, cfg))
        save_safetensors(_state(model), folder / WEIGHTS, {"format": "pt"})
        if vocabulary is not None:
            write_text(folder / WORDS, json.dumps(_words(vocabulary), ensure_ascii=False, indent=1) + "\n")
        text = yaml.safe_dump(_nested(values), sort_keys=False, allow_unicode=True)
        write_text(folder / f".{CONFIG}", text)
        files = {CONFIG: ((folder / f".{CONFIG}").stat().st_size, file_digest(folder / f".{CONFIG}"))}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != CARD and not path.name.startswith("."):
                files[path.relative_to(folder).as_posix()] = path.stat().st_size, file_digest(path)
        write_text(card_file, card.text(files))
        (folder / f".{CONFIG}").replace(folder / CONFIG)
    (folder / ".lock").unlink(missing_ok=True)
    return files


def read_words(path: Path) -> Vocabulary:
    """Return the words of a ``vocabulary.json``.

    Raises:
        OvsegError: the file cannot be read, or its words are not valid.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, synonyms = tuple(content["names"]), tuple(tuple(texts) for texts in content["synonyms"])
        background, templates = tuple(content.get("background", ())), content.get("templates")
        templates = None if templates is None else tuple(templates)
        return Vocabulary(names, synonyms, str(path), background, templates, bool(content.get("verbatim")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OvsegError(f"{path} is not a {WORDS} of this package ({error}): copy the folder again") from error


def _words(vocabulary: Vocabulary) -> dict[str, Any]:
    names = ("names", "synonyms", "background", "templates", "verbatim")
    return {name: getattr(vocabulary, name) for name in names}


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
        if key.split(".")[0] in SECTIONS and key not in _LEFT_OUT and value != defaults.get(key)
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
    for key, weights in _CLIPS.items():
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
            yield _SAM, "./sam"
        elif isinstance(part, BoundaryTree):
            yield from ((f"{_TREE}.{name}", value) for name, value in part.chosen.items())
    for key in PATHS:
        if key in (*_LEFT_OUT, *_CLIPS, _SAM) or not isinstance(values.get(key), str) or not values[key]:
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
