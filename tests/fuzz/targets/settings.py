"""Configuration files and KEY VALUE options, up to the model that is built of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from ovseg import Segmenter
from ovseg.config import DEFAULTS, get_cfg, load_cfg, refuse_keys_without_effect
from ovseg.evaluation.runner import check_evaluation
from tests.fuzz.mutate import mutate_bytes, mutate_value, odd_value, to_yaml
from tests.scripts import REPO
from tests.tiny_model import make_tiny_model

_SMALL: tuple[Any, ...] = (
    *(0, -1, 1, 2, 7, 0.5, 1.5, -0.5, "0", "1", "-1", "0.5", "1e-3", "nan", "inf", "", "none", "None", "abc", "true"),
    *("True", "yes", "(1,)", "[1, 2]", "[]", "()", "{}", "{a: 1}", "[", "'x'", "('a', 'b')", "a b", "cuda:9", "mps"),
    *(None, True, [], [1], (1, 2), {}, {"a": 1}, [None], "é", "\0", "my_data.yaml", "http://example.invalid/x"),
)
_CHOICES = {
    "MODEL.META_ARCHITECTURE": ("OVSeg", "SCAN", "ovseg", "OVSegDEMO", "GeneralizedRCNN", "PanopticFPN"),
    "MODEL.BACKBONE.NAME": ("D2SwinTransformer", "build_resnet_backbone", "swin"),
    "MODEL.SEM_SEG_HEAD.NAME": ("OpenVocabMaskFormerHead", "OpenVocaMask2FormerHead", "SemSegFPNHead"),
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("BasePixelDecoder", "MSDeformAttnPixelDecoder", "x"),
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": ("ViT-B/99", "x.json", "local-dir:.", "hf-hub:x/y", "RN50:x"),
    "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS": ("openai", "none", "x.pt", "typo", "."),
    "MODEL.DEVICE": ("cpu", "cuda", "mps", "xpu", "gpu", "cpu:3", "meta"),
    "INPUT.FORMAT": ("RGB", "BGR", "XYZ", "L"),
    "TEST.ORACLE": ("none", "masks", "labels"),
    "METRIC": ("Vanilla", "SG-IoU"),
}


def _dotted(node: dict, prefix: str = "") -> Iterable[str]:
    for key, value in node.items():
        yield from _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) and value else (f"{prefix}{key}",)


def _changes(content: dict, defaults: dict) -> dict:
    changed = {key: value for key, value in content.items() if value != defaults.get(key)}
    return {key: _changes(value, defaults[key]) if isinstance(value, dict) else value for key, value in changed.items()}


def odd_options(rng: Random, keys: list[str], odd: Callable[[Random], Any]) -> list[Any]:
    """KEY VALUE pairs, most of them of a right key."""
    options: list[Any] = []
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(keys)
        value = rng.choice(_CHOICES[key]) if key in _CHOICES and rng.random() < 0.7 else odd(rng)
        options += [key, value]
    kind = rng.randrange(20)
    if kind == 0:
        options.pop()
    elif kind == 1:
        options[:2] = [f"{options[0]}={options[1]}"]
    elif kind == 2:
        options[0] = rng.choice((options[0].lower(), options[0][:-1], f"{options[0]}.X", "", "MODEL", "x", None, 3))
    return options


def _small(rng: Random) -> Any:
    return rng.choice(_SMALL)


class Settings:
    """Files and options read, and checked as before an evaluation."""

    name = "settings"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        self.keys = list(_dotted(get_cfg()))
        self.files = [
            yaml.safe_load((REPO / f"configs/{name}.yaml").read_text()) for name in ("_base_/ovseg", "scan_vitL")
        ]
        self.files.append(
            {"_BASE_": str(REPO / "configs/_base_/ovseg.yaml"), "TEST": {"PER_DATASET": {"x": {"MASK_THR": 1}}}}
        )
        for content in self.files:
            if isinstance(content.get("_BASE_"), str) and not content["_BASE_"].startswith("/"):
                content["_BASE_"] = str(REPO / "configs" / content["_BASE_"])
            elif isinstance(content.get("_BASE_"), list):
                content["_BASE_"] = [str(REPO / "configs" / base) for base in content["_BASE_"]]

    def make(self, rng: Random, folder: Path) -> tuple[Path, list[Any]]:
        content, path = rng.choice(self.files), folder / "config.yaml"
        if rng.random() < 0.6:
            content = mutate_value(rng, content)
        if rng.random() < 0.05 and isinstance(content, dict):
            content = content | {
                "_BASE_": rng.choice(("config.yaml", str(path), ".", "http://example.invalid/x", 3, ["x"]))
            }
        data = to_yaml(rng, content)
        path.write_bytes(data if rng.random() < 0.95 else mutate_bytes(rng, data))
        odd = rng.choice((_small, odd_value))
        return path, odd_options(rng, self.keys, odd) if rng.random() < 0.6 else []

    def steps(self, given: tuple[Path, list[Any]]) -> Iterable[Callable[[], object]]:
        return [partial(_load, *given)]


def _load(path: Path, options: list[Any]) -> None:
    cfg = load_cfg(path, options)
    refuse_keys_without_effect(cfg)
    cfg.dump()
    cfg.DATASETS.TEST = ()
    check_evaluation(cfg)


class Models:
    """Options of a tiny model that is built and used."""

    name = "models"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        # channels for more than one value in each group that is normalised, even where maps have one pixel
        self.config, self.weights = make_tiny_model(folder, opts=["MODEL.SEM_SEG_HEAD.CONVS_DIM", "64"])
        defaults = yaml.safe_load(get_cfg().dump())  # which need not be read again for each input
        self.config.write_text(yaml.safe_dump(_changes(yaml.safe_load(self.config.read_text()), defaults)))
        ours = [key for key in DEFAULTS if not key.startswith(("WANDB", "SOLVER", "DATASETS"))]
        self.keys = [*ours, *_CHOICES, "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.MIN_SIZE_TEST"]
        self.keys += ["INPUT.MAX_SIZE_TEST", "TEST.AUG.ENABLED", "TEST.AUG.MIN_SIZES", "MODEL.SEM_SEG_HEAD.NORM"]
        self.keys += ["MODEL.SEM_SEG_HEAD.IN_FEATURES"]

    def make(self, rng: Random, folder: Path) -> list[Any]:
        return odd_options(rng, self.keys, _small)

    def steps(self, options: list[Any]) -> Iterable[Callable[[], object]]:
        return [partial(self._use, options)]

    def _use(self, options: list[Any]) -> None:
        segmenter = Segmenter.from_config(self.config, self.weights, options)
        result = segmenter(np.zeros((16, 24, 3), np.uint8), ["sky", "dog"])
        assert result.label_map.shape == (16, 24)
