"""The options of making pseudo-masks; imports nothing that takes seconds, so that wrong ones are refused at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovseg.config.files import check_file
from ovseg.errors import OvsegError
from ovseg.io.ray_options import RayOptions


@dataclass(frozen=True)
class PseudoOptions:
    """The options of ``tools/make_pseudo_masks.py``, which says what each means."""

    data: Sequence[str]
    output: Path
    config_file: str
    weights: str | None = None
    opts: Sequence[str] = ()
    image_root: Path | None = None
    image_column: str | None = None
    caption_column: str | None = None
    delimiter: str | None = None
    max_images: int | None = None
    threshold: float = 0.5
    min_area: float = 0.001
    min_confidence: float = 0.75
    max_iou: float = 0.8
    max_masks: int = 64
    max_size: int = 1024
    shard_size: int | None = None
    allow_bad: bool = False
    device: str | None = None
    ray: RayOptions | None = None


def check_options(options: PseudoOptions) -> None:
    """Refuse values that cannot work.

    Raises:
        OvsegError: names the option.
    """
    for name in ("threshold", "min_area", "min_confidence", "max_iou"):
        if not 0 <= (value := getattr(options, name)) <= 1:
            raise OvsegError(f"{_flag(name)} is {value:g}, which is not a share: give a number from 0 to 1")
    for name, least in (("max_masks", 1), ("max_size", 16), ("shard_size", 1), ("max_images", 1)):
        if (value := getattr(options, name)) is not None and value < least:
            raise OvsegError(f"{_flag(name)} is {value}: give a number of at least {least}")
    check_file(options.config_file)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
