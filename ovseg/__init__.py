"""ovseg: segment any image into any words.

Importing the package registers its models and data sets with Detectron2; nothing is read or downloaded.
"""

from __future__ import annotations

import warnings
from typing import Any

__version__ = "0.1.0"


def _register() -> None:
    from ovseg import meta_arch, proposals  # noqa: F401  (each registers its classes)
    from ovseg.data.catalog import register_all
    from ovseg.data.toy import register_toy
    from ovseg.detectron2_hints import add_hints

    add_hints()
    register_all()
    register_toy()


with warnings.catch_warnings():
    # fvcore and Detectron2 compile small functions on import in a way that new PyTorch versions deprecate
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
    _register()


def __getattr__(name: str) -> Any:
    # Segmenter and Segmentation on first use: drawing libraries take a second to import
    if name in ("Segmenter", "Segmentation"):
        from ovseg.segmentation import Segmentation
        from ovseg.segmenter import Segmenter

        return {"Segmenter": Segmenter, "Segmentation": Segmentation}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
