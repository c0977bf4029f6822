"""Resolve the name of a CLIP, build it with open_clip, and load its weights."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from torch import nn

from ovseg.checkpoint.packaged import packaged_folder, packaged_state
from ovseg.checkpoint.state_dicts import bare_clip_names, read_state_dict
from ovseg.clip.preprocessing import OPENAI, Preprocessing
from ovseg.clip.tokenizer import build_tokenizer, first_line, lacks_package, missing_package
from ovseg.errors import OvsegError, argument

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
CONFIG = "open_clip_config.json"
SHIPPED = {"photo": Path(__file__).with_name("photo.json")}  # models of this package, by name
PACKAGED = "packaged:"  # before names of ovseg.checkpoint.packaged, in a JSON configuration
KEY, WEIGHTS_KEY = argument("name"), argument("weights")


@dataclass(frozen=True)
class ClipSource:
    """Origin of a CLIP: architecture, weights and preprocessing.

    Attributes:
        name: as the user gave it.
        architecture: open_clip's model configuration.
        fetch_weights: returns the path of the weights and downloads them if necessary; None for random weights.
        weights_hint: the weights' file, for messages.
        preprocessing: of the images of its training.
        base_weights: packaged weights by the prefix of their names in the model, for tensors that the weights' file
            lacks: see :mod:`ovseg.checkpoint.packaged`.
    """

    name: str
    architecture: dict[str, Any]
    fetch_weights: Callable[[], str] | None
    weights_hint: str
    preprocessing: Preprocessing = OPENAI
    base_weights: Mapping[str, str] = field(default_factory=dict)


def find_clip(name: str, weights: str = "", *, default: str = "openai") -> ClipSource:
    """Resolve a model name and a source of weights, without building or downloading the model.

    The preprocessing is the first of these that exists: that of the tag; ``preprocess_cfg`` in the JSON configuration,
    or in an ``open_clip_config.json`` next to the weight file (whose ``quick_gelu`` is used, too); that of all weights
    that open_clip has for the architecture, if they agree; OpenAI's. For a file with the weights of a tag, give the tag
    in the name ("ViT-L-14:laion2b_s32b_b82k"). The checkpoint of a segmenter does not change the preprocessing.

    Args:
        name: OpenAI's name ("ViT-L/14"), open_clip's ("ViT-L-14", "ViT-L-14-quickgelu", "ViT-L-14:TAG"), the path of
            an open_clip JSON configuration, "hf-hub:ORG/MODEL" or "local-dir:FOLDER"; or "photo", the small model of
            this package (docs/photo_model.md).
        weights: an open_clip tag ("openai"), a file that exists, "none" for random weights, or "" for the weights
            of the name, or else ``default``.
        default: open_clip's tag for names without one. If it is "openai", OpenAI's names denote OpenAI's models,
            which were trained with QuickGELU.

    Raises:
        OvsegError: the name or tag is unknown, a file is missing or damaged, or the Hugging Face hub is unreachable.
    """
    name, weights = str(name), str(weights or "")
    if name.startswith("local-dir:"):
        return _from_folder(name, weights, default)
    if name.startswith("hf-hub:"):
        return _from_hub(name, weights, default)
    if name in SHIPPED:
        own = str(SHIPPED[name].with_suffix(".safetensors"))
        return _from_json(name, SHIPPED[name], _named_weights(weights, default) or (partial(str, own), own))
    if name.lower().endswith(".json"):
        own = partial(_no_weights, name), ""
        return _from_json(name, Path(name), _named_weights(weights, default) or own)
    if name.endswith(WEIGHT_SUFFIXES):
        raise OvsegError(
            f"{KEY} = {name!r} is a weight file: name the architecture there (for example ViT-L/14) and give the file "
            f"as {WEIGHTS_KEY}"
        )
    return _from_open_clip(name, weights, default)


def build_clip(source: ClipSource) -> tuple[nn.Module, Callable[[list[str]], Any]]:
    """Build the model with random weights, frozen and in evaluation mode, and its tokenizer.

    The tokenizer maps n texts to int64 (n, context_length); its ``encode`` returns the tokens of a text without the
    start and end marks.

    Raises:
        OvsegError: the model is not a CLIP of two towers, a package is missing, or the configuration is not valid.
    """
    architecture = dict(source.architecture)
    if "multimodal_cfg" in architecture:
        raise OvsegError(
            f"{source.name} is a CoCa captioner: choose a CLIP of an image tower (vision transformer, ResNet, ConvNeXt "
            "or another of timm) and a text tower alone"
        )
    # without downloads of the towers' pretrained weights, which are replaced
    text = architecture["text_cfg"] = architecture["text_cfg"] | {"hf_model_pretrained": False}
    architecture["vision_cfg"] = architecture["vision_cfg"] | {"timm_model_pretrained": False}
    custom = architecture.pop("custom_text", False) or text.get("hf_model_name")
    try:
        for key, value in text.items():
            if isinstance(value, str) and value.startswith(PACKAGED):
                text[key] = str(packaged_folder(value.removeprefix(PACKAGED)))
        tokenizer = build_tokenizer(source.name, text)
        model = (CustomTextCLIP if custom else CLIP)(**architecture)
    except OvsegError:
        raise
    except Exception as error:  # any type: from a tower's code for a bad value, or from the hub's client
        if package := missing_package(error):
            part = f"text tower {text['hf_model_name']}" if package == "transformers" else "image tower"
            raise lacks_package(source.name, part, package) from error
        raise OvsegError(
            f"{source.name} is not a usable CLIP configuration ({first_line(error)}): check its JSON"
        ) from error
    size = model.visual.image_size
    if not isinstance(size, int) and len(set(size)) != 1:
        raise OvsegError(
            f"the images of CLIP {source.name} have {' x '.join(map(str, size))} pixels: crops are squares, choose a "
            "CLIP of square images"
        )
    return model.eval().requires_grad_(False), tokenizer


def load_clip_weights(model: nn.Module, source: ClipSource, names: Collection[str] | None = None) -> None:
    """Load the weights of ``source`` into ``model``; mask prompts keep their values if the file has none.

    Args:
        names: names of the tensors to load, which the file must have; None for all.

    Raises:
        OvsegError: the weights cannot be read or downloaded, or are those of another model.
    """
    path = source.fetch_weights()
    state = bare_clip_names(read_state_dict(path))
    if "vision_model.pre_layrnorm.weight" in state:  # names of transformers
        raise OvsegError(
            f"{path} is a CLIP of Hugging Face's transformers, which has other names of tensors: give open_clip's "
            f"file of {source.name} as {WEIGHTS_KEY}"
        )
    own = {name: tensor for name, tensor in model.state_dict().items() if names is None or name in names}
    for prefix, packaged in source.base_weights.items():
        below = [name for name in model.state_dict() if name.startswith(prefix)]
        if any(name in own and name not in state for name in below):
            base = packaged_state(packaged, [name.removeprefix(prefix) for name in below])
            state = {prefix + name: tensor for name, tensor in base.items()} | state
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    missing = [name for name in own if name not in state and not name.endswith("mask_embedding")]
    if wrong == ["visual.mask_embedding"] and not missing:
        raise OvsegError(
            f"{path} has mask prompts of shape {list(state[wrong[0]].shape)}, the model {list(own[wrong[0]].shape)}: "
            f"set {argument('depth')} to {len(state[wrong[0]])}"
        )
    if wrong or missing:
        name = (wrong or missing)[0]
        what = (
            f"{name} has shape {list(state[name].shape)}, not {list(own[name].shape)}"
            if wrong
            else f"{name} is missing"
        )
        raise OvsegError(
            f"{path} does not hold the weights of {source.name} ({what}): make {KEY} and {WEIGHTS_KEY} agree"
        )
    found = {name: state[name].to(tensor.dtype) for name, tensor in own.items() if name in state}
    model.load_state_dict(found, strict=False)
    logger.info("CLIP %s: %d tensors from %s", source.name, len(found), path)


def _from_open_clip(name: str, weights: str, default: str) -> ClipSource:
    given, (name, _, tag) = name, name.partition(":")
    known = name.replace("/", "-").replace("@336px", "-336")
    architecture = open_clip.get_model_config(known)
    if architecture is None:
        what = (
            "is a folder: write local-dir: before it"
            if os.path.isdir(given)
            else "is not a CLIP of open_clip, nor a .json file: give one of them"
            + _did_you_mean(known, open_clip.list_models())
        )
        raise OvsegError(f"{KEY} = {given!r} {what}")
    tags = open_clip.list_pretrained_tags_by_model(known)
    chosen = None if open_clip.get_pretrained_cfg(known, weights) else _named_weights(weights, default, known, tags)
    if chosen is None:
        tag = _agreed_tag(known, tag, weights, default)
    pretrained = open_clip.get_pretrained_cfg(known, tag) if tag else {}
    if tag and not pretrained:
        raise OvsegError(_unknown_tag(known, tag, tags))
    if chosen is None:
        hint = _weights_hint(pretrained)
        chosen = partial(_download, partial(download_pretrained, pretrained), name, hint), hint
    if tag:
        quick_gelu = pretrained.get("quick_gelu")
        preprocessing = Preprocessing.of(pretrained, f"open_clip's {known}:{tag}")
    else:
        path, config = _config_next_to(chosen[1])
        named = default == "openai" and "/" in name  # OpenAI's spelling
        quick_gelu = _architecture(config, path).get("quick_gelu") if config else named
        preprocessing = _preprocessing(config, path) or _common_preprocessing(known, tags)
    if quick_gelu:  # open_clip's plain names do not imply it
        architecture["quick_gelu"] = True
    return ClipSource(name, architecture, *chosen, preprocessing)


def _agreed_tag(known: str, of_name: str, weights: str, default: str) -> str:
    """Return the tag of the name or of the weights; the default does not conflict with the other."""
    if of_name and weights not in ("", default, of_name):
        raise OvsegError(
            f"{KEY} = '{known}:{of_name}' and {WEIGHTS_KEY} = {weights!r} name two tags: leave one of them out"
        )
    return of_name or weights or default


def _unknown_tag(known: str, tag: str, tags: Sequence[str]) -> str:
    hint = _did_you_mean(tag, tags) or f"; its tags are {', '.join(tags)}" if tags else ""
    return (
        f"open_clip has no weights {tag!r} for {known}, and there is no file of this name: set {WEIGHTS_KEY} to a tag "
        f"or to a file{hint}"
    )


def _common_preprocessing(known: str, tags: Sequence[str]) -> Preprocessing:
    """Return the preprocessing of all weights that open_clip has for an architecture if they agree, else OpenAI's."""
    found = {Preprocessing.of(open_clip.get_pretrained_cfg(known, tag), f"{known}:{tag}") for tag in tags}
    return found.pop() if len(found) == 1 else OPENAI


def _weights_hint(pretrained: dict[str, str]) -> str:
    hub, url = pretrained.get("hf_hub", ""), pretrained.get("url", "")
    repository, _, file = hub.rpartition("/")
    return f"{file or 'open_clip_model.safetensors'} of {repository} on the Hugging Face hub" if hub else url


def _named_weights(
    weights: str, default: str, known: str = "", tags: Sequence[str] = ()
) -> tuple[Callable[[], str] | None, str] | None:
    """Return ``fetch_weights`` and ``weights_hint`` of a file or of "none"; None if only the default is named.

    Raises:
        OvsegError: the named weights do not exist.
    """
    if weights.lower() == "none":
        return None, ""
    path = os.path.expanduser(weights)
    if os.path.isfile(path):
        return partial(str, path), path
    if weights in ("", default):
        return None
    if os.path.isdir(path):
        raise OvsegError(f"{WEIGHTS_KEY} = {weights!r} is a folder: give the file in it, or {KEY} local-dir:FOLDER")
    if weights.endswith(WEIGHT_SUFFIXES) or "/" in weights or os.sep in weights:
        folder, file = os.path.split(path)
        near = _did_you_mean(file, [name for name in _names_in(folder or ".") if name.endswith(WEIGHT_SUFFIXES)])
        raise OvsegError(f"the weight file {weights} does not exist: check {WEIGHTS_KEY}{near}")
    if known:
        raise OvsegError(_unknown_tag(known, weights, tags))
    raise OvsegError(
        f"{WEIGHTS_KEY} = {weights!r} is not a file, and only open_clip's names have tags: give the path of the weights"
    )


def _names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    lower = {other.casefold(): other for other in names}
    near = difflib.get_close_matches(name.casefold(), lower, n=3)
    nearest = [lower[other] for other in near] or [other for other in names if name and name in other][:3]
    return f"; did you mean {', '.join(nearest)}?" if nearest else ""


def _no_weights(name: str) -> str:
    raise OvsegError(f"CLIP {name} is a configuration without weights: give their file as {WEIGHTS_KEY}")


def _download(fetch: Callable[[], str], name: str, hint: str) -> str:
    try:
        return fetch()
    except Exception as error:  # the hub, the network and the disk each raise their own kinds
        raise OvsegError(
            f"cannot download the CLIP weights of {name} ({first_line(error)}): on a machine with network "
            f"fetch {hint}, copy it here, and set {WEIGHTS_KEY} to its path"
        ) from error


def _from_folder(name: str, weights: str, default: str) -> ClipSource:
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    chosen = _named_weights(weights, default)
    if chosen is None:
        files = [file for suffix in WEIGHT_SUFFIXES for file in folder.glob(f"open_clip*{suffix}")]
        chosen = (partial(str, min(files)), str(min(files))) if files else None
    source = _from_json(name, folder / CONFIG, chosen or (None, ""))
    if chosen is None:
        raise OvsegError(f"{folder} has no weights: put open_clip_model.safetensors next to {CONFIG}")
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        text = source.architecture["text_cfg"]
        text["hf_tokenizer_name"] = text.get("hf_tokenizer_name") and str(folder)
    return source


def _from_hub(name: str, weights: str, default: str) -> ClipSource:
    repository = name.removeprefix("hf-hub:")
    chosen = _named_weights(weights, default)
    try:
        config = download_pretrained_from_hf(repository, filename=CONFIG)
    except Exception as error:  # the hub's client raises many kinds
        raise OvsegError(
            f"cannot fetch {CONFIG} of {repository} from the Hugging Face hub ({first_line(error)}): "
            f"download the repository on a machine with network and set {KEY} to local-dir:FOLDER"
        ) from error
    if chosen is None:
        hint = f"the weights of {repository}"
        chosen = partial(_download, partial(download_pretrained_from_hf, repository), name, hint), hint
    return _from_json(name, Path(config), chosen)


def _from_json(name: str, path: Path, weights: tuple[Callable[[], str] | None, str]) -> ClipSource:
    content = _read_json(path)
    other, config = _config_next_to(weights[1])
    preprocessing = _preprocessing(content, path) or _preprocessing(config, other) or OPENAI
    base = content.get("base_weights", {}) if path in SHIPPED.values() else {}
    architecture = _architecture(content, path)
    for key in ("hf_tokenizer_name", "hf_model_name"):  # folders next to the JSON, of a saved segmenter
        value = architecture["text_cfg"].get(key)
        if isinstance(value, str) and value.startswith("./"):
            architecture["text_cfg"][key] = str(path.parent / value)
    return ClipSource(name, architecture, *weights, preprocessing, base)


def _config_next_to(weights: str) -> tuple[Path, Any]:
    """Return the path and the content of the configuration next to a weight file; None if there is none."""
    path = Path(weights).parent / CONFIG
    return path, _read_json(path) if os.path.isfile(weights) and path.is_file() else None


def _preprocessing(content: Any, path: Path) -> Preprocessing | None:
    config = content.get("preprocess_cfg") if isinstance(content, dict) else None
    return None if config is None else Preprocessing.of(config, str(path))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OvsegError(f"cannot read the CLIP configuration {path} ({error.strerror}): check {KEY}") from error
    except (ValueError, RecursionError) as error:
        raise OvsegError(f"the CLIP configuration {path} is not valid JSON ({error}): check {KEY}") from error


def _architecture(content: Any, path: Path) -> dict[str, Any]:
    architecture = content.get("model_cfg", content) if isinstance(content, dict) else {}
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(architecture if isinstance(architecture, dict) else ())
    if missing:
        raise OvsegError(
            f"the CLIP configuration {path} lacks {', '.join(sorted(missing))}: it must be open_clip's JSON"
        )
    for key in ("vision_cfg", "text_cfg"):
        if not isinstance(architecture[key], dict):
            raise OvsegError(f"{key} in the CLIP configuration {path} is not a mapping: it must be open_clip's JSON")
    return {key: value for key, value in architecture.items() if key != "preprocess_cfg"}
