"""How the images were prepared that a CLIP was trained on: open_clip's ``preprocess_cfg``."""

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
    """What of a CLIP's ``preprocess_cfg`` is used wherever pixels go into the model; the defaults are OpenAI's.

    The mean and the standard deviation always are the model's own, and so is the colour behind masks, its mean. The
    interpolation is the model's where that is "bilinear"; where it is open_clip's default, "bicubic", the published
    protocol holds: bicubic without antialiasing for crops, nearest neighbour for SCAN's whole images. The resize mode
    is never followed: both published systems squash crops and whole images to CLIP's square, also those of CLIPs with
    the default, "shortest", whose centre crop would lose the borders that masks reach to.

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
        """Check a ``preprocess_cfg``; what it lacks is OpenAI's, what only open_clip's own transforms use is ignored.

        Args:
            config: the mapping; None for none.
            source: where it is from, for messages.

        Raises:
            OvsegError: it is no mapping, or a value cannot be used.
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
        """The mean colour, RGB in 0 .. 255, as recipes write it."""
        return tuple(round(255 * value, 4) for value in self.mean)

    @property
    def whole_interpolation(self) -> str:
        """How whole images are resized, in PyTorch's names."""
        return "bilinear" if self.interpolation == "bilinear" else "nearest"


OPENAI = Preprocessing()


def _colour(value: Any, key: str, source: str) -> tuple[float, float, float]:
    """Three finite numbers in 0 .. 1; one stands for all three channels."""
    numbers = (
        [value] * 3 if isinstance(value, (int, float)) else list(value) if isinstance(value, (list, tuple)) else []
    )
    good = len(numbers) == 3 and all(type(x) in (int, float) and math.isfinite(x) and 0 <= x <= 1 for x in numbers)
    if not good:
        raise OvsegError(
            f"{key} of preprocess_cfg in {source} is {str(value)[:60]}: give three numbers from 0 to 1 (RGB / 255)"
        )
    return tuple(float(x) for x in numbers)
