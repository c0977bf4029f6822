"""Hyper-parameters of fine-tuning: defaults, YAML files of them, and flags that override both."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.errors import OvsegError, shown
from ovseg.io.plain_yaml import read_plain_yaml, unknown_key

if TYPE_CHECKING:
    from ovseg.clip.preprocessing import Preprocessing

SHIFT = "contextual-shift"
MODES = ("full", "mask-prompt", SHIFT)
# what the papers train each mode with (specification of OVSeg, 12.2 and 12.3; of SCAN, 12)
_OF_MODE = {
    "full": {"lr": 5e-6, "weight_decay": 0.2, "mask_from": "mask"},
    "mask-prompt": {"lr": 2e-2, "weight_decay": 0.0, "mask_from": "mask"},
    SHIFT: {"lr": 5e-6, "weight_decay": 0.2, "mask_from": "colour"},
}
_OWN_MEAN = (-1.0, -1.0, -1.0)


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None, same_run: bool = True) -> Any:
    """A field; with ``same_run`` it may not change when a run is resumed."""
    return field(default=default, metadata={"help": help, "choices": choices, "same_run": same_run})


@dataclass(frozen=True)
class Recipe:
    """All options of :func:`ovseg.adaptation.finetune.finetune` but its inputs and its output."""

    epochs: int = _option(5, "times that all pairs are seen")
    batch_size: int = _option(128, "pairs of a step, over all processes")
    micro_batch: int = _option(
        0, "pairs that a process encodes at a time; 0: its whole share. Less memory, the same gradients", None, False
    )
    lr: float = _option(0.0, "learning rate; 0: 2e-2 for mask-prompt, else 5e-6")
    weight_decay: float = _option(
        -1.0, "of weights that are no biases, norms or scales; -1: 0 for mask-prompt, else 0.2"
    )
    warmup: int = _option(100, "steps of linear warm-up before the cosine")
    beta1: float = _option(0.9, "AdamW's")
    beta2: float = _option(0.98, "AdamW's")
    eps: float = _option(1e-6, "AdamW's")
    depth: int = _option(3, "levels of mask prompts, where the CLIP has none yet (mode mask-prompt)")
    replace_ratio: float = _option(0.15, "share of a crop's background patches that is replaced (contextual-shift)")
    replace_layers: tuple[int, ...] = _option(
        (1, 3, 5, 7, 9), "blocks after which it is, those that the tower has (contextual-shift)"
    )
    force_quick_gelu: bool = _option(False, "run a CLIP with QuickGELU whatever it was trained with")
    equal_nouns: str = _option(
        "negatives", "equal texts of other pairs in a batch: wrong answers, or left out", ("negatives", "ignore")
    )
    template: str = _option("{}", "sentence that a noun is put into")
    scale: tuple[float, float] = _option((0.9, 1.0), "share of a crop's area that is seen")
    ratio: tuple[float, float] = _option((3 / 4, 4 / 3), "width / height of what is seen")
    ratio_of: str = _option(
        "picture",
        "the ratio is that of the part in pixels (the original; slim crops lose their ends), or relative to the crop's",
        ("picture", "crop"),
    )
    fill: tuple[float, float, float] = _option(
        _OWN_MEAN, "RGB, 0 .. 255, behind the masks; -1 -1 -1: CLIP's mean as at inference"
    )
    mask_from: str = _option(
        "auto",
        "an augmented crop's mask: the mask, resized, or all that is not of the fill's colour (SCAN's scripts); auto: "
        "colour for contextual-shift",
        ("auto", "mask", "colour"),
    )
    precision: str = _option("fp32", "of the image tower's forward and backward", ("fp32", "bf16", "fp16"))
    checkpoint_activations: bool = _option(
        False, "recompute activations in the backward pass: less memory", None, False
    )
    seed: int = _option(0, "of prompts, order, augmentation and replaced patches")
    workers: int = _option(2, "data-loader processes for each training process", None, False)
    checkpoint_every: int = _option(200, "steps between checkpoints, and one after each epoch; 0: none", None, False)
    log_every: int = _option(20, "steps between lines of the log", None, False)

    def of_mode(self, mode: str) -> Recipe:
        """Return the recipe with the mode's own learning rate, weight decay and kind of masks where none was given."""
        own = _OF_MODE[mode]
        return replace(
            self,
            lr=self.lr or own["lr"],
            weight_decay=own["weight_decay"] if self.weight_decay < 0 else self.weight_decay,
            mask_from=own["mask_from"] if self.mask_from == "auto" else self.mask_from,
        )

    def with_fill(self, preprocessing: Preprocessing) -> Recipe:
        """Return the recipe with the mean colour of the CLIP's images where no fill was given."""
        return replace(self, fill=preprocessing.fill) if self.fill == _OWN_MEAN else self

    def check(self, processes: int) -> None:
        """Refuse values that cannot work.

        Raises:
            OvsegError: names the key.
        """
        for key in ("epochs", "batch_size", "log_every"):
            if getattr(self, key) < 1:
                raise OvsegError(f"{key} is {getattr(self, key)}: it must be at least 1")
        for key in ("micro_batch", "warmup", "workers", "checkpoint_every", "depth"):
            if getattr(self, key) < 0:
                raise OvsegError(f"{key} is {getattr(self, key)}: it must not be negative")
        if self.batch_size % processes:
            raise OvsegError(f"batch_size {self.batch_size} cannot be shared by {processes} processes: use a multiple")
        if not 0 <= self.replace_ratio <= 1:
            raise OvsegError(f"replace_ratio is {self.replace_ratio}: give a number from 0 to 1")
        if self.fill != _OWN_MEAN and not all(0 <= value <= 255 for value in self.fill):
            raise OvsegError(f"fill is {list(self.fill)}: give RGB from 0 to 255, or -1 -1 -1 for CLIP's mean")
        if self.template.count("{}") != 1:
            raise OvsegError(f"template {self.template!r} must hold {{}} exactly once: that is where the noun goes")
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise OvsegError(
                f"scale {list(self.scale)} and ratio {list(self.ratio)} must be ascending and above 0, scale at most 1"
            )


FIELDS = {f.name: f for f in fields(Recipe)}


def read_recipe(path: str | Path, mode: str) -> dict[str, Any]:
    """Return the values of a YAML file: keys of :class:`Recipe`, and those below the name of the mode.

    Raises:
        OvsegError: unreadable or no plain YAML, an unknown key (the nearest one is suggested), or a bad value.
    """
    content = read_plain_yaml(path, "recipe")
    sections = {name: content.pop(name) or {} for name in MODES if name in content}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise OvsegError(f"{name} in the recipe {path} must hold lines of KEY: VALUE below it")
    checked = {name: _checked(section, f"{path}, {name}") for name, section in sections.items()}
    return _checked(content, str(path), (*FIELDS, *MODES)) | checked.get(mode, {})


def _checked(values: Mapping[str, Any], source: str, known: Sequence[str] = tuple(FIELDS)) -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        if key not in FIELDS:
            raise unknown_key(key, known, source)
        try:
            result[key] = _convert(key, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise OvsegError(f"{key} in {source} is {shown(value)}: {error}") from error
    return result


def _convert(key: str, value: Any) -> Any:
    """Convert ``value`` to the field's type; YAML 1.1 reads 5e-6 as a text."""
    default, choices = FIELDS[key].default, FIELDS[key].metadata["choices"]
    if isinstance(default, tuple) and isinstance(default[0], int):
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(type(part) is int for part in value):
            raise ValueError("it must be a list of whole numbers")
        return tuple(value)
    if isinstance(default, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(default):
            raise ValueError(f"it must be a list of {len(default)} numbers")
        return tuple(float(part) for part in value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError("it must be true or false")
        return value
    if isinstance(default, str):
        if not isinstance(value, str) or (choices and value not in choices):
            raise ValueError(f"choose one of {', '.join(choices)}" if choices else "it must be a text")
        return value
    if isinstance(value, bool) or (isinstance(default, int) and not float(value).is_integer()):
        raise ValueError("it must be a whole number" if isinstance(default, int) else "it must be a number")
    return type(default)(float(value))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each key of :class:`Recipe`; those not given are absent from the parsed arguments."""
    group = parser.add_argument_group("recipe", "override the file given as --recipe")
    for name, option in FIELDS.items():
        flag, default, choices = f"--{name.replace('_', '-')}", option.default, option.metadata["choices"]
        kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{option.metadata['help']} ({default})"}
        kwargs["help"] = kwargs["help"].replace("%", "%%")
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **kwargs)
        elif isinstance(default, tuple) and isinstance(default[0], int):
            group.add_argument(flag, type=int, nargs="+", metavar="N", **kwargs)
        elif isinstance(default, tuple):
            group.add_argument(flag, type=float, nargs=len(default), metavar="X", **kwargs)
        else:
            metavar = None if choices else type(default).__name__.upper()
            group.add_argument(flag, type=type(default), choices=choices, metavar=metavar, **kwargs)


def recipe_from_flags(args: argparse.Namespace, mode: str, path: str | Path | None) -> Recipe:
    """Return the defaults, overridden by the file, overridden by flags.

    Raises:
        OvsegError: see :func:`read_recipe`.
    """
    values = read_recipe(path, mode) if path is not None else {}
    flags = {name: value for name, value in vars(args).items() if name in FIELDS}
    return replace(Recipe(), **(values | _checked(flags, "the flags"))).of_mode(mode)
