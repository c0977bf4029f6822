"""Giving a built model the settings of one data set (``TEST.PER_DATASET``), for as long as that is evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce

from torch import nn

from ovseg.config.per_dataset import KEY
from ovseg.errors import OvsegError

# where a model keeps what a setting says
_ATTRIBUTES = {
    "MASK_THR": "clip_adapter.mask_threshold",
    "CLIP_ENSEMBLE_WEIGHT": "clip_ensemble_weight",
    "REPLACE_RATIO": "clip_adapter.replace_ratio",
}


def check_settings(model: nn.Module, settings: Iterable[str]) -> None:
    """Raise OvsegError unless the model has all of these settings, named by the last part of their keys."""
    for name in settings:
        _place(model, name)


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
            owner, attribute = _place(model, name)
            stack.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, value)
        yield


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The part of the model and its attribute that hold a setting."""
    *parts, attribute = _ATTRIBUTES[name].split(".")
    try:
        owner = reduce(getattr, parts, model)
        getattr(owner, attribute)
    except AttributeError as error:
        raise OvsegError(f"{KEY} sets {name}, which {type(model).__name__} does not have: remove it") from error
    return owner, attribute
