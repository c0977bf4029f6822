"""ovseg: segment any image into any words.

Importing the package registers its models and data sets with Detectron2, if that is installed; nothing is read or
downloaded. The commands of this package register them when their arguments are right, so that ``--help`` and mistakes
are answered at once.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ovseg.environment.requirements import has_detectron2, require_detectron2
from ovseg.errors import OvsegError

if TYPE_CHECKING:
    from ovseg.result.compete import compete
    from ovseg.result.segmentation import Segmentation
    from ovseg.segmenter import Segmenter
    from ovseg.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["OvsegError", "Segmentation", "Segmenter", "Vocabulary", "compete", "register"]

# imported on first use: drawing libraries take a second
_PLACES = {
    "Segmentation": "ovseg.result.segmentation",
    "Segmenter": "ovseg.segmenter",
    "Vocabulary": "ovseg.vocabulary",
    "compete": "ovseg.result.compete",
}


@functools.cache  # once is enough
def register() -> None:
    """Register models and data sets with Detectron2, which is imported here: it takes seconds, and only once.

    Raises:
        OvsegError: Detectron2 or PyTorch is not installed, or does not import.
    """
    with warnings.catch_warnings():
        _ignore_deprecations()
        require_detectron2()
        from ovseg import meta_arch, proposals  # noqa: F401  (each registers its classes)
        from ovseg.config.detectron2_hints import add_hints
        from ovseg.data.catalog import register_all
    add_hints()
    register_all()


def _ignore_deprecations() -> None:
    # fvcore and Detectron2 compile small functions on import in a way that new PyTorch versions deprecate
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=category)


def _is_command() -> bool:
    """Whether this process runs one of our own commands: ``ovseg`` or a script of the repository."""
    if sys.argv[:1] == ["-m"]:  # so it is while Python looks for the module to run
        return sys.orig_argv[sys.orig_argv.index("-m") + 1].split(".")[0] == "ovseg"
    main, root = sys.modules["__main__"], Path(__file__).resolve().parents[1]
    script = getattr(main, "__file__", None) if main.__name__ == "__main__" else None  # not in a process of ours
    if not script:
        return False
    script = Path(script)
    if script.name == "ovseg" or script.parent.name == "ovseg.exe":  # the entry point, on Windows in its .exe
        return True
    script = script.resolve()
    doors = ("demo", "train_net", "main_demo", "main_seg", "main_pretrain")
    folders = ("tools", "datasets", "convert_dataset")
    return script in [root / f"{name}.py" for name in doors] or script.parent in [root / name for name in folders]


def _handle_signals() -> None:
    """Let a signal end a command in one line while libraries load, which takes seconds.

    There is nothing to remove yet; :func:`ovseg.errors.user_errors` takes over.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end_in_one_line)


def _end_in_one_line(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n" if number == signal.SIGINT else b"terminated\n")
    os._exit(128 + number)


if _is_command():
    _handle_signals()
    _ignore_deprecations()
elif has_detectron2():
    register()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Segmenter":
        register()
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
