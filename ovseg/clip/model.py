"""Building CLIP with open_clip, unmodified, and finding its weights when they are needed."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import nn

from ovseg.errors import OvsegError
from ovseg.state_dicts import bare_clip_names, read_state_dict

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
KEY = "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME"


@dataclass(frozen=True)
class ClipSource:
    """Where a CLIP comes from.

    Attributes:
        name: as the user gave it.
        architecture: open_clip's model configuration.
        fetch_weights: gives the path of the weights, downloading them if need be; None: there are none.
        weights_hint: the weights' file, for messages.
    """

    name: str
    architecture: dict[str, Any]
    fetch_weights: Callable[[], str] | None
    weights_hint: str


def find_clip(name: str, weights: str, *, openai: bool = True) -> ClipSource:
    """Resolve a model name and a source of weights, without building or downloading the model.

    Args:
        name: OpenAI's name ("ViT-L/14"), open_clip's ("ViT-L-14", "ViT-L-14-quickgelu", "ViT-L-14:TAG"), the path of
            an open_clip JSON configuration, "hf-hub:ORG/MODEL" or "local-dir:FOLDER".
        weights: an open_clip tag ("openai"), a file, or "none". A JSON configuration has no tags.
        openai: without a tag to tell, OpenAI's names mean OpenAI's models, which were trained with QuickGELU.

    Raises:
        OvsegError: unknown name or tag, missing or bad file, Hugging Face's hub out of reach.
    """
    if name.startswith("local-dir:"):
        return _from_folder(name, Path(name.removeprefix("local-dir:")), weights)
    if name.startswith("hf-hub:"):
        return _from_hub(name, weights)
    if name.endswith(".json"):
        return ClipSource(name, _read_architecture(Path(name)), *_from_file_or_none(weights))
    if name.endswith(WEIGHT_SUFFIXES):
        raise OvsegError(
            f"{KEY} = {name!r} is a weight file: name the architecture there (for example ViT-L/14) and give the file "
            "as MODEL.CLIP_ADAPTER.CLIP_WEIGHTS"
        )
    return _from_open_clip(name, weights, openai)


def build_clip(source: ClipSource) -> tuple[nn.Module, Callable[[list[str]], Any]]:
    """Build the model with random weights, frozen and in evaluation mode, and its tokenizer.

    The tokenizer maps n texts to int64 (n, context_length); its ``encode`` gives a text's tokens without the start
    and end marks.
    """
    architecture = dict(source.architecture)
    text = architecture["text_cfg"]
    custom = architecture.pop("custom_text", False) or "hf_model_name" in text
    try:
        model = (CustomTextCLIP if custom else CLIP)(**architecture)
    except (TypeError, ValueError, AssertionError) as error:
        raise OvsegError(f"{source.name} is no usable CLIP configuration: {error}") from error
    context_length = text.get("context_length", 77)
    if "hf_tokenizer_name" in text:
        tokenizer = HFTokenizer(
            text["hf_tokenizer_name"], context_length=context_length, **text.get("tokenizer_kwargs", {})
        )
    else:
        tokenizer = SimpleTokenizer(context_length=context_length)
    return model.eval().requires_grad_(False), tokenizer


def load_clip_weights(model: nn.Module, source: ClipSource, names: Collection[str] | None = None) -> None:
    """Load the weights of ``source`` into ``model``; mask prompts keep their values where the file has none.

    Args:
        names: of the tensors to load, which the file must have; None for all.

    Raises:
        OvsegError: the weights cannot be had, or are those of another model.
    """
    try:
        path = source.fetch_weights()
    except OvsegError:
        raise
    except Exception as error:  # the hub, the network and the disk each raise their own kinds
        raise OvsegError(
            f"cannot download the CLIP weights of {source.name} ({_first_line(error)}): on a machine with network "
            f"fetch {source.weights_hint}, copy it here, and set MODEL.CLIP_ADAPTER.CLIP_WEIGHTS to its path"
        ) from error
    state = bare_clip_names(read_state_dict(path))
    own = {name: tensor for name, tensor in model.state_dict().items() if names is None or name in names}
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    missing = [name for name in own if name not in state and not name.endswith("mask_embedding")]
    if wrong == ["visual.mask_embedding"] and not missing:
        raise OvsegError(
            f"{path} has mask prompts of shape {list(state[wrong[0]].shape)}, the model {list(own[wrong[0]].shape)}: "
            f"set MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH to {len(state[wrong[0]])}"
        )
    if wrong or missing:
        name = (wrong or missing)[0]
        what = (
            f"{name} has shape {list(state[name].shape)}, not {list(own[name].shape)}"
            if wrong
            else f"{name} is missing"
        )
        raise OvsegError(
            f"{path} does not hold the weights of {source.name} ({what}): make {KEY} and CLIP_WEIGHTS agree"
        )
    found = {name: state[name].to(tensor.dtype) for name, tensor in own.items() if name in state}
    model.load_state_dict(found, strict=False)
    logger.info("CLIP %s: %d tensors from %s", source.name, len(found), path)


def _from_open_clip(name: str, weights: str, openai: bool) -> ClipSource:
    name, _, tag = name.partition(":")
    tag = tag or weights
    openai_name = openai and "/" in name
    known = name.replace("/", "-").replace("@336px", "-336")
    architecture = open_clip.get_model_config(known)
    if architecture is None:
        nearest = difflib.get_close_matches(known, open_clip.list_models(), n=3)
        hint = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        raise OvsegError(f"{KEY} = {name!r} is no CLIP that open_clip knows, nor a .json file{hint}")
    if tag == "none" or _is_file_name(tag):
        source = _from_file_or_none(tag)
        quick_gelu = openai_name
    else:
        pretrained = open_clip.get_pretrained_cfg(known, tag)
        if not pretrained:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(known))
            raise OvsegError(
                f"open_clip has no weights {tag!r} for {known}: set MODEL.CLIP_ADAPTER.CLIP_WEIGHTS to one of {tags}, "
                "to a file, or to none"
            )
        source = (lambda: download_pretrained(pretrained)), _weights_hint(pretrained)
        quick_gelu = pretrained.get("quick_gelu")
    if quick_gelu:  # open_clip's plain names do not say so
        architecture["quick_gelu"] = True
    return ClipSource(name, architecture, *source)


def _weights_hint(pretrained: dict[str, str]) -> str:
    hub, url = pretrained.get("hf_hub", ""), pretrained.get("url", "")
    repository, _, file = hub.rpartition("/")
    return f"{file or 'open_clip_model.safetensors'} of {repository} on the Hugging Face hub" if hub else url


def _from_file_or_none(weights: str) -> tuple[Callable[[], str] | None, str]:
    if not _is_file_name(weights):
        return None, ""
    return (lambda: weights), weights


def _is_file_name(weights: str) -> bool:
    return weights.endswith(WEIGHT_SUFFIXES) or Path(weights).is_file()


def _from_folder(name: str, folder: Path, weights: str) -> ClipSource:
    architecture = _read_architecture(folder / "open_clip_config.json")
    if _is_file_name(weights) or weights == "none":
        return ClipSource(name, architecture, *_from_file_or_none(weights))
    files = sorted(
        file for suffix in (".safetensors", ".bin", ".pt", ".pth") for file in folder.glob(f"open_clip*{suffix}")
    )
    if not files:
        raise OvsegError(f"{folder} has no weights: put open_clip_model.safetensors beside open_clip_config.json")
    chosen = str(files[0])
    return ClipSource(name, architecture, lambda: chosen, chosen)


def _from_hub(name: str, weights: str) -> ClipSource:
    repository = name.removeprefix("hf-hub:")
    try:
        config = download_pretrained_from_hf(repository, filename="open_clip_config.json")
    except Exception as error:  # the hub's client raises many kinds
        raise OvsegError(
            f"cannot fetch open_clip_config.json of {repository} from the Hugging Face hub ({_first_line(error)}): "
            f"download the repository on a machine with network and set {KEY} to local-dir:FOLDER"
        ) from error
    architecture = _read_architecture(Path(config))
    if _is_file_name(weights) or weights == "none":
        return ClipSource(name, architecture, *_from_file_or_none(weights))
    return ClipSource(
        name, architecture, lambda: download_pretrained_from_hf(repository), f"the weights of {repository}"
    )


def _read_architecture(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OvsegError(f"cannot read the CLIP configuration {path} ({error.strerror}): check {KEY}") from error
    except ValueError as error:
        raise OvsegError(f"the CLIP configuration {path} is not valid JSON: {error}") from error
    architecture = content.get("model_cfg", content) if isinstance(content, dict) else {}
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(architecture)
    if missing:
        raise OvsegError(
            f"the CLIP configuration {path} lacks {', '.join(sorted(missing))}: it must be open_clip's JSON"
        )
    return architecture


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
