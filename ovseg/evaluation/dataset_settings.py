"""Give a model the settings of one data set (``TEST.PER_DATASET``) while that is evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ovseg.config.per_dataset import KEY
from ovseg.errors import OvsegError

# settings and their attributes of the model or of its parts
_ATTRIBUTES = {
    "MASK_THR": "mask_threshold",
    "CLIP_ENSEMBLE_WEIGHT": "weight",
    "REPLACE_RATIO": "replace_ratio",
    "BG_THRESH": "bg_thresh",
}


def check_settings(model: nn.Module, settings: Iterable[str]) -> None:
    """Raise OvsegError unless the model has all of these settings, named by the last part of their keys."""
    for name in settings:
        _owners(model, name)


@contextlib.contextmanager
def dataset_settings(model: nn.Module, settings: Mapping[str, float]) -> Iterator[None]:
    """Set the model's attributes; give them their former values when the block ends, however it ends.

    Args:
        model: a meta-architecture, not wrapped.
        settings: by the last part of their keys, see :func:`ovseg.config.per_dataset.settings_of`.

    Raises:
        OvsegError: the model has no such setting.
    """
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            for owner in _owners(model, name):
                attribute = _ATTRIBUTES[name]
                stack.callback(setattr, owner, attribute, getattr(owner, attribute))
                setattr(owner, attribute, value)
        yield


def _owners(model: nn.Module, name: str) -> list[Any]:
    """Return the parts of the model that hold a setting."""
    parts = (
        model,
        *getattr(model, "parts", ()),
        *(getattr(model, part, None) for part in ("mask_namer", "fuse", "render", "scorer")),
    )
    owners = [part for part in parts if hasattr(part, _ATTRIBUTES[name])]
    if not owners:
        kinds = ", ".join(type(part).__name__ for part in getattr(model, "parts", ()))
        raise OvsegError(
            f"{KEY} sets {name}, but the model {type(model).__name__}{kinds and f' ({kinds})'} has no such setting: "
            f"remove {name} from {KEY}, or evaluate a system that has it, such as SCAN"
        )
    return owners
