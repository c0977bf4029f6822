"""The recorded case of OVSegmentor: the complete one ($OVSEGMENTOR_PARITY), or its reduced copy in tests/data."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import yaml
from detectron2.modeling import build_model
from torch import Tensor

from ovseg.checkpoint import load_weights
from ovseg.config import CfgNode, get_cfg
from ovseg.proposals.group_tokens import IMAGENET_MEAN, IMAGENET_STD

REDUCED = Path(__file__).parents[1] / "data" / "ovsegmentor_tiny"
FOLDER = Path(os.environ.get("OVSEGMENTOR_PARITY") or REDUCED)
complete = FOLDER != REDUCED


class Case:
    """Inputs, expected outputs and comparisons of the recorded case.

    Args:
        work: folder for the files that a configuration names.
    """

    def __init__(self, work: Path):
        self.published = yaml.safe_load((FOLDER / "config.yaml").read_text())
        self.inputs, self.outputs = (np.load(FOLDER / f"{name}.npz") for name in ("inputs", "outputs"))
        self.work, self.compared = work, {}

    @cached_property
    def config_file(self) -> Path:
        """A configuration in our keys, with the sizes and the tokens of the small BERT."""
        model = dict(self.published["model"])
        image, text = dict(model.pop("img_encoder")), dict(model.pop("text_encoder"))
        (self.work / "bert.json").write_text(json.dumps(self.published["bert"]))
        numbers = {index: token for token, index in self.published["vocabulary"].items()}
        size = self.published["bert"]["vocab_size"]
        tokens = [numbers.get(index, f"[unused{index}]") for index in range(size)]
        (self.work / "vocab.txt").write_text("\n".join(tokens) + "\n")
        own = {key.upper(): value for key, value in model.items() if key != "type"}
        own["IMG_ENCODER"] = {key.upper(): value for key, value in image.items()}
        own["TEXT_ENCODER"] = {"CONFIG": "bert.json", "WIDTH": text["width"], "VOCAB": "vocab.txt"}
        file = self.work / "config.yaml"
        file.write_text(yaml.safe_dump({"MODEL": {"META_ARCHITECTURE": "OVSegmentor", "OVSEGMENTOR": own}}))
        return file

    def config(self, *options) -> CfgNode:
        cfg = get_cfg()
        cfg.merge_from_file(self.config_file)
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
        return cfg

    def model(self, *options) -> torch.nn.Module:
        """Return the model with the recorded weights, in evaluation mode."""
        model = build_model(self.config(*options))
        if complete:
            load_weights(model, FOLDER / "weights.safetensors")
        else:
            weights = np.load(FOLDER / "weights.npz")
            model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, strict=False)
        return model.eval()

    def __getitem__(self, name: str) -> Tensor:
        """Return an input."""
        return torch.from_numpy(self.inputs[name])

    def text(self, name: str) -> tuple[Tensor, Tensor]:
        return self[f"{name}_ids"], self[f"{name}_mask"]

    def pixels(self, name: str) -> Tensor:
        """Return a normalised input (B, 3, H, W) as RGB, 0 .. 255."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self[name] * std + mean

    def batch(self) -> list[dict]:
        """Return the training batch."""
        batch = [
            {"image": image, "cross_image": other}
            for image, other in zip(self.pixels("images"), self.pixels("cross_images"), strict=True)
        ]
        for name in ("caption", "question", "answer", "cross_entity"):
            for sample, ids, mask in zip(batch, *self.text(name), strict=True):
                sample[name] = {"input_ids": ids, "attention_mask": mask}
        return batch

    def check(self, name: str, actual: Tensor, atol: float = 2e-4, rtol: float = 1e-3) -> None:
        """Compare with a recorded array; the reduced copy lacks some."""
        if not complete and name not in self.outputs:
            return
        actual, expected = torch.as_tensor(actual).detach().numpy(), self.outputs[name]
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        if expected.dtype.kind in "biu":
            self.compared[name] = float((actual != expected).mean())
            assert self.compared[name] <= (0.005 if "label" in name or "argmax" in name else 0), name
            return
        difference = np.abs(actual - expected)
        self.compared[name] = float(difference.max())
        excess = (difference - atol - rtol * np.abs(expected)).max()
        assert excess <= 0, f"{name}: largest difference {self.compared[name]:.2e}"

    def check_scores(self, name: str, actual: Tensor) -> None:
        """Compare class scores of pixels, which jump at the borders of groups."""
        if not complete and name not in self.outputs:
            return
        expected = torch.from_numpy(self.outputs[name])
        difference = (actual - expected).abs()
        wrong = (difference > 1e-3).flatten(0, -3).any(0)
        self.compared[name] = float(difference.amax(tuple(range(difference.dim() - 2)))[~wrong].max())
        assert wrong.float().mean() <= 0.005, f"{name}: {wrong.float().mean():.2%} of pixels differ"
