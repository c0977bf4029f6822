"""ovseg: segment any image into any words.

Importing the package registers its models and data sets with Detectron2; nothing is read or downloaded.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

__version__ = "0.1.0"


def _handle_signals() -> None:
    """Let a signal end our own commands in one line while libraries load, which takes seconds.

    There is nothing to clear away yet; :func:`ovseg.errors.user_errors` takes over. Programs of others are left alone.
    """
    main, root = sys.modules["__main__"], Path(__file__).resolve().parents[1]
    script = getattr(main, "__file__", None) if main.__name__ == "__main__" else None  # not in a process of ours
    if not script or Path(script).resolve().parent not in (root, root / "tools"):
        return
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end_in_one_line)


def _end_in_one_line(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n" if number == signal.SIGINT else b"terminated\n")
    os._exit(128 + number)


def _register() -> None:
    from ovseg import meta_arch, proposals  # noqa: F401  (each registers its classes)
    from ovseg.config.detectron2_hints import add_hints
    from ovseg.data.catalog import register_all

    add_hints()
    register_all()


_handle_signals()
with warnings.catch_warnings():
    # fvcore and Detectron2 compile small functions on import in a way that new PyTorch versions deprecate
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
    _register()


def __getattr__(name: str) -> Any:
    # Segmenter and Segmentation on first use: drawing libraries take a second to import
    if name in ("Segmenter", "Segmentation"):
        from ovseg.result.segmentation import Segmentation
        from ovseg.segmenter import Segmenter

        return {"Segmenter": Segmenter, "Segmentation": Segmentation}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
