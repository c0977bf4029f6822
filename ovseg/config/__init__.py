"""Configuration: every key with its default, what its values may be, and errors in words.

The keys need Detectron2, which imports slowly: on first use. :mod:`ovseg.config.files` reads files without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovseg.config.defaults import DEFAULTS, WITHOUT_EFFECT

if TYPE_CHECKING:
    from ovseg.config.keys import CfgNode, get_cfg, joined_options, load_cfg, refuse_keys_without_effect

__all__ = [
    "DEFAULTS",
    "WITHOUT_EFFECT",
    "CfgNode",
    "get_cfg",
    "joined_options",
    "load_cfg",
    "refuse_keys_without_effect",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ovseg.config import keys

    return getattr(keys, name)
