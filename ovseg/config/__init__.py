"""Configuration: every key with its default, what its values may be, and errors in words."""

from ovseg.config.defaults import DEFAULTS, WITHOUT_EFFECT
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
