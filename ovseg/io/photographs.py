"""Photographs that installed packages contain, with words that fit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ovseg.errors import OvsegError

if TYPE_CHECKING:
    import numpy as np

WORDS = {
    "chelsea": ["cat", "dog", "blanket", "wall"],
    "coffee": ["cup", "spoon", "dining table"],
    "rocket": ["rocket", "sky", "tower", "tree"],
    "astronaut": ["person", "flag", "rocket", "wall"],
    "china": ["sky", "building", "tree", "water", "person"],
}


def photographs() -> Callable[[str], np.ndarray]:
    """Return the function that loads a photograph by its name in :data:`WORDS`, as uint8 (H, W, 3) RGB.

    They are those of scikit-image (in the public domain: a cat, coffee, a rocket, an astronaut) and of scikit-learn (a
    temple by a lake, CC BY 2.0, by danielbuechele).

    Raises:
        OvsegError: scikit-image or scikit-learn is not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        package = "scikit-image" if "skimage" in str(error) else "scikit-learn"
        raise OvsegError(
            f"the photographs need the package {package}, which is not installed: `pip install {package}`, or segment "
            "your own with `python demo.py --input photo.jpg --class-names ...`"
        ) from error
    return lambda name: load_sample_image("china.jpg") if name == "china" else getattr(data, name)()
