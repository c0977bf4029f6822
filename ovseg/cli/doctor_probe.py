"""What ``ovseg doctor`` asks a process of its own, since libraries take seconds, and broken ones end a process.

Each part is printed as a line of JSON, ``[part, answer]``, as soon as it is known; an error is a text.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

# a few letters of each script that the fonts of a system may lack
LETTERS = {
    "Arabic": "عر",
    "Bengali": "বল",
    "CJK": "漢字",
    "Cyrillic": "жд",
    "Devanagari": "हन",
    "Ethiopic": "አማ",
    "Greek": "λξ",
    "Hangul": "한글",
    "Hebrew": "עב",
    "Hiragana": "ひら",
    "Tamil": "தம",
    "Thai": "ทย",
}


def torch_devices() -> dict[str, Any]:
    """Return the version of PyTorch and the devices that it can use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "devices": [f"cuda:{i} {p.name} {p.total_memory / 2**30:.0f} GiB" for i, p in enumerate(properties)]
        + (["mps"] if torch.backends.mps.is_available() else []),
        "threads": torch.get_num_threads(),
    }


def detectron2_build() -> dict[str, str]:
    """Return the version, place and kind of Detectron2."""
    import detectron2
    import detectron2.layers

    from ovseg.environment.detectron2 import installed_source

    kind = {"pypi": "pure Python", "git": "official"}[installed_source()]
    return {"version": detectron2.__version__, "place": detectron2.__path__[0], "kind": kind}


def opencv() -> dict[str, str]:
    """Return the version of OpenCV that is imported."""
    import cv2

    return {"version": cv2.__version__}


def scripts_without_font() -> list[str]:
    """Return the scripts whose letters would be drawn as boxes."""
    from ovseg.result.drawing import has_font

    return [script for script, letters in LETTERS.items() if not has_font(letters)]


PARTS: dict[str, Callable[[], Any]] = {
    "torch": torch_devices,
    "detectron2": detectron2_build,
    "opencv": opencv,
    "fonts": scripts_without_font,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    for part, ask in PARTS.items():
        try:
            answer: Any = ask()
        except ModuleNotFoundError as error:
            answer = f"no module {error.name}"
        except Exception as error:  # whatever a broken library raises is what is reported
            answer = f"does not import: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}"
        print(json.dumps([part, answer]), flush=True)
