"""A procedural world to train, evaluate and show the whole project without any download.

``make_scene(seed)`` draws one scene; ``toy_sem_seg_train``, ``_tune`` and ``_val`` are its data sets, and
``toy_captions_train``, which has captions and no labels. No other folder imports it: :mod:`ovseg.data.worlds` finds it
when something asks for the name ``toy``.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "classes": ("BASE_CLASSES", "CLASS_NAMES", "COLOURS", "NOVEL_CLASSES", "SHAPES", "STUFF"),
    "registration": ("register_toy", "render_split"),
    "scene": ("Scene", "make_scene"),
    "sentences": ("Thing",),
}
__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
    # on first use: drawing libraries take time to import, which `python -m ovseg.toy --help` does not need
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
