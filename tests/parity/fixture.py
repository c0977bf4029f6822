"""The recorded numbers of the original system, in full ($OVSEG_PARITY) or the reduced copy in tests/data."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import Backbone, build_model
from safetensors.numpy import load_file
from torch import Tensor

from ovseg.checkpoint import load_weights
from ovseg.config import get_cfg

REDUCED = Path(__file__).parent.parent / "data" / "ovseg_tiny"
RELATIVE_TOLERANCE = 1e-4  # of the array's largest magnitude, on CPU in float32 (the fixture's README)


class RecordedBackbone(Backbone):
    """A backbone whose last stage, too large for the reduced copy, is played back."""

    def __init__(self, backbone: Backbone, res5: Tensor):
        super().__init__()
        self.backbone = backbone
        self.res5 = res5

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.backbone(image) | {"res5": self.res5}

    def output_shape(self):
        return self.backbone.output_shape()


class Parity:
    """Configuration, inputs and expected outputs of one recorded case, and the model with its weights."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reduced = not (folder / "weights.safetensors").is_file()
        self.inputs = np.load(folder / "inputs.npz", allow_pickle=False)
        self.outputs = np.load(folder / "outputs.npz", allow_pickle=False)
        self.behaviour = json.loads((folder / "behaviour.json").read_text())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        if self.reduced:
            arrays = {
                name: array
                for file in sorted(self.folder.glob("weights*.npz"))
                for name, array in np.load(file).items()
            }
        else:
            arrays = load_file(self.folder / "weights.safetensors")
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}

    def config(self, *opts):
        cfg = get_cfg()
        cfg.merge_from_file(self.folder / "config.yaml")
        cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = str(self.folder / "clip.json")
        cfg.MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR = "none"
        cfg.merge_from_list([str(value) for value in opts])
        return cfg

    def model(self, *opts):
        """A new model with the recorded weights; ``opts`` are KEY VALUE pairs."""
        model = build_model(self.config(*opts))
        if self.reduced:
            model.load_state_dict({k: v.to(model.state_dict()[k].dtype) for k, v in self.weights.items()}, strict=False)
            model.clip_adapter.lacking_weights = frozenset()  # it lacks the text tower
        else:
            load_weights(model, self.folder / "weights.safetensors")
        return model.eval()

    def names(self, which: str) -> list[str]:
        return [str(name) for name in self.inputs[f"names/{which}"]]

    def request(self, image: int, which: str = "test") -> dict:
        height, width = (int(x) for x in self.inputs[f"img{image}/out_hw"])
        pixels = torch.from_numpy(self.inputs[f"img{image}/image"]).permute(2, 0, 1)
        return {"image": pixels, "height": height, "width": width, "class_names": self.names(which)}

    def play_back(self, model, res5_name: str) -> None:
        """In the reduced copy, replace the last backbone stage by what it gave for this input."""
        if self.reduced:
            backbone = getattr(model.backbone, "backbone", model.backbone)
            res5 = torch.from_numpy(self.outputs[res5_name])
            model.backbone = RecordedBackbone(backbone, res5 if res5.dim() == 4 else res5[None])

    def segment(self, model, image: int, which: str = "test") -> Tensor:
        self.play_back(model, f"img{image}/backbone/res5")
        with torch.no_grad():
            return model([self.request(image, which)])[0]["sem_seg"]

    def check(self, name: str, actual: Tensor, tolerance: float = RELATIVE_TOLERANCE) -> None:
        """Compare with a recorded array.

        The reduced copy has large maps thinned out, under the name ``...@8``, and lacks some arrays altogether.
        """
        actual = torch.as_tensor(actual).detach().numpy()
        if self.reduced and name not in self.outputs:
            name, actual = f"{name}@8", actual[..., ::8, ::8]
            if name not in self.outputs:
                return
        expected = self.outputs[name]
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        if expected.dtype.kind in "biu" or actual.dtype == bool:
            assert (actual == expected).all(), name
        else:
            error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)
            COMPARED.append((name, float(error)))
            assert error <= tolerance, f"{name}: relative difference {error:.2e}"


COMPARED: list[tuple[str, float]] = []


def load() -> Parity:
    folder = os.environ.get("OVSEG_PARITY")
    return Parity(Path(folder) if folder else REDUCED)
