"""A service of the toy model, counts of what its networks do, and images of requests."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovseg import Segmenter
from ovseg.evaluation.tower_count import TOWERS
from ovseg.toy import make_scene

if find_spec("fastapi") is None or find_spec("python_multipart") is None:  # the extra web is not installed
    collect_ignore_glob = ["test_*.py"]
ROOT = Path(__file__).parents[2]
WORDS = ["grass", "red star", "tile", "wood"]


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Return an image as the content of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


class Calls:
    """How often the model and CLIP's image tower of a segmenter were called."""

    def __init__(self, segmenter: Segmenter):
        self.model = self.clip = 0
        segmenter.model.register_forward_pre_hook(self._model)
        towers = [module for module in segmenter.model.modules() if isinstance(module, TOWERS)]
        assert towers
        for tower in towers:
            first = next(module for module in tower.modules() if type(module).__name__ == "Conv2d")
            first.register_forward_pre_hook(self._clip)

    def _model(self, *_: object) -> None:
        self.model += 1

    def _clip(self, *_: object) -> None:
        self.clip += 1


@pytest.fixture(scope="session")
def toy() -> Segmenter:
    config = ROOT / "configs" / "toy" / "ovseg_toy.yaml"
    return Segmenter.from_config(config, opts={"MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none"}, device="cpu")


@pytest.fixture(scope="session")
def calls(toy) -> Calls:
    return Calls(toy)


@pytest.fixture(scope="session")
def scene_image() -> np.ndarray:
    return make_scene(8).image


@pytest.fixture(scope="session")
def content(scene_image) -> bytes:
    return encoded(scene_image)


@pytest.fixture(scope="session")
def make_service(toy) -> Callable[..., Any]:
    """Return the function limits -> :class:`ovseg.web.service.Service`."""
    from ovseg.web.limits import Limits
    from ovseg.web.service import OWN, Example, Service

    def make(**limits: float) -> Any:
        segmenters = {OWN: toy, "BoundaryTree": toy.with_proposer("BoundaryTree")}
        examples = [Example("scene-9", ("grass", "tile"), lambda: make_scene(9).image)]
        return Service(segmenters, Limits(**limits), examples)

    return make
