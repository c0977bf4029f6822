"""What a folder of ``save_pretrained`` may name: its own files, and what comes with this package or open_clip."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import open_clip

from ovseg.checkpoint.packaged import FILES
from ovseg.clip.bert import PUBLISHED
from ovseg.clip.model import PACKAGED, SHIPPED
from ovseg.errors import OvsegError, shown


def _is_clip(name: str) -> bool:
    name, _, tag = name.partition(":")
    known = name.replace("/", "-").replace("@336px", "-336")
    return name in SHIPPED or (known in open_clip.list_models() and (not tag or _is_tag(tag)))


def _is_tag(name: str) -> bool:
    return name == "none" or any(name == tag for _, tag in open_clip.list_pretrained())


_KNOWN: dict[str, Callable[[str], bool]] = {
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": _is_clip,
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME": _is_clip,
    "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED": _is_clip,
    "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS": _is_tag,
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_WEIGHTS": _is_tag,
    "MODEL.NAMER.REGIONS": "photo".__eq__,
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG": PUBLISHED.__contains__,
}


def is_inside(value: str) -> bool:
    """Return whether a value is ``./NAME`` of a file or folder that is not above."""
    return value.startswith("./") and ".." not in PurePosixPath(value.replace("\\", "/")).parts


def is_permitted(key: str, value: str) -> bool:
    """Return whether a folder may have this value of a key in :data:`ovseg.config.files.PATHS`.

    Others would be read from the working folder, from elsewhere on this machine, or from the hub.
    """
    return is_inside(value) or (key in _KNOWN and _KNOWN[key](value))


def check_clip(path: Path) -> None:
    """Check that a CLIP's JSON names its own files only.

    Raises:
        OvsegError: it names others, or options that let a library run code of the folder.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return  # find_clip explains it
    architecture = _mapping(_mapping(content).get("model_cfg", content))
    text, vision = _mapping(architecture.get("text_cfg")), _mapping(architecture.get("vision_cfg"))
    for key in ("hf_tokenizer_name", "hf_model_name"):
        value = text.get(key)
        if not value:
            continue
        is_packaged = isinstance(value, str) and value.removeprefix(PACKAGED) in FILES and value.startswith(PACKAGED)
        if not isinstance(value, str) or not (is_packaged or is_inside(value)):
            raise OvsegError(f"{key} in {path} is {shown(value)}, outside of the folder: do not use this model")
    name = str(vision.get("timm_model_name") or "")
    if ":" in name or "/" in name:
        raise OvsegError(f"timm_model_name in {path} is {shown(name)}, outside of the folder: do not use this model")
    if "trust_remote_code" in _mapping(text.get("tokenizer_kwargs")):
        raise OvsegError(f"tokenizer_kwargs in {path} has trust_remote_code, which runs code: do not use this model")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
