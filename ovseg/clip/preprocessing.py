"""Preprocessing of the images of a CLIP: open_clip's ``preprocess_cfg``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from ovseg.errors import OvsegError

_INTERPOLATIONS = {"bicubic": "bicubic", "random": "bicubic", "bilinear": "bilinear"}  # as open_clip takes them
_RESIZE_MODES = ("shortest", "longest", "squash")


@dataclass(frozen=True)
class Preprocessing:
    """Values of a CLIP's ``preprocess_cfg``, used for all input of the model; the defaults are OpenAI's.

    Mean, standard deviation and the fill colour of masked crops (the mean) are those of the model. Interpolation is
    bilinear if that of the model is; with open_clip's default, "bicubic", it is that of the published systems: bicubic
    without antialiasing for crops, nearest neighbour for SCAN's whole images. The resize mode is not used: both
    published systems squash crops and whole images to CLIP's square, also for CLIPs with the default, "shortest", whose
    centre crop would remove the borders of the image.

    Attributes:
        mean, std: of RGB values in 0 .. 1.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest", "longest" or "squash".
    """

    mean: tuple[float, float, float] = OPENAI_DATASET_MEAN
    std: tuple[float, float, float] = OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    @classmethod
    def of(cls, config: Any, source: str) -> Preprocessing:
        """Return the checked values of a ``preprocess_cfg``; defaults are OpenAI's, other keys are ignored.

        Args:
            config: the mapping; None for the defaults.
            source: file or tag of the mapping, for messages.

        Raises:
            OvsegError: it is not a mapping, or a value is not valid.
        """
        if config is None:
            return cls()
        if not isinstance(config, Mapping):
            raise OvsegError(f"preprocess_cfg in {source} is not a mapping: give open_clip's keys (mean, std, ...)")
        given = {
            key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if config.get(key) is not None
        }
        for key in ("mean", "std"):
            if key in given:
                given[key] = _colour(given[key], key, source)
        if not all(value > 0 for value in given.get("std", (1,))):
            raise OvsegError(f"std of preprocess_cfg in {source} is {list(given['std'])}: give numbers above 0")
        for key, choices in (("interpolation", tuple(_INTERPOLATIONS)), ("resize_mode", _RESIZE_MODES)):
            if key in given and given[key] not in choices:
                raise OvsegError(
                    f"{key} of preprocess_cfg in {source} is {str(given[key])[:60]!r}: choose one of "
                    f"{', '.join(choices)}"
                )
        if "interpolation" in given:
            given["interpolation"] = _INTERPOLATIONS[given["interpolation"]]
        return cls(**given)

    @property
    def fill(self) -> tuple[float, float, float]:
        """Mean colour, RGB in 0 .. 255, rounded as in recipes."""
        return tuple(round(255 * value, 4) for value in self.mean)

    @property
    def whole_interpolation(self) -> str:
        """Interpolation mode of whole images, in PyTorch's terms."""
        return "bilinear" if self.interpolation == "bilinear" else "nearest"


OPENAI = Preprocessing()


def _colour(value: Any, key: str, source: str) -> tuple[float, float, float]:
    """Return a colour as three finite numbers in 0 .. 1; a single number is used for all channels."""
    numbers = (
        [value] * 3 if isinstance(value, (int, float)) else list(value) if isinstance(value, (list, tuple)) else []
    )
    good = len(numbers) == 3 and all(type(x) in (int, float) and math.isfinite(x) and 0 <= x <= 1 for x in numbers)
    if not good:
        raise OvsegError(
            f"{key} of preprocess_cfg in {source} is {str(value)[:60]}: give three numbers from 0 to 1 (RGB / 255)"
        )
    return tuple(float(x) for x in numbers)
