"""Scripts of tools/ and datasets/ as modules, for tests that call what is in them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """The module of a script; ``path`` is relative to the repository, as in ``tools/replace_clip.py``."""
    file = REPO / path
    spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
