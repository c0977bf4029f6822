"""Hints in errors of Detectron2's own tools that meet keys and values of ovseg.

Detectron2 raises these errors in functions of its own, before any part of ovseg runs. What works stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.solver.build import GradientClipType

from ovseg.config import DEFAULTS
from ovseg.errors import OvsegError


def add_hints() -> None:
    """Make two errors of Detectron2 say what to use: unknown keys of ovseg, and the gradient clipping of its files."""
    CfgNode.merge_from_other_cfg = _with_hint(CfgNode.merge_from_other_cfg)
    CfgNode.merge_from_list = _with_hint(CfgNode.merge_from_list)
    GradientClipType._missing_ = classmethod(_unknown_clip_type)


def _with_hint(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def merge(self: CfgNode, other: Any) -> Any:
        try:
            return method(self, other)
        except (KeyError, AssertionError) as error:
            key = str(error.args[0] if error.args else "").rpartition("key: ")[2]
            if not any(name == key or name.startswith(f"{key}.") for name in DEFAULTS):
                raise
            raise type(error)(
                f"{key} is a key of ovseg, which detectron2.config.get_cfg() does not know: make the configuration by "
                "ovseg.config.get_cfg() or ovseg.config.load_cfg(FILE); see docs/detectron2.md"
            ) from error

    return merge


def _unknown_clip_type(cls: type[GradientClipType], value: object) -> None:
    if value == "full_model":
        raise OvsegError(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model is unknown to Detectron2's build_optimizer: let your trainer's "
            "build_optimizer and build_lr_scheduler return those of ovseg.engine.solver; see docs/detectron2.md"
        )
