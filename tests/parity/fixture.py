"""The recorded numbers of the original systems, in full ($OVSEG_PARITY, ...) or reduced, in tests/data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.modeling import Backbone, build_model
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor

from ovseg.checkpoint import load_model, load_weights
from ovseg.checkpoint.state_dicts import constant_names
from ovseg.config import get_cfg
from ovseg.meta_arch.lseg import build_lseg
from ovseg.meta_arch.maskclip import ConvolutionalHead, MaskCLIP, build_maskclip

DATA = Path(__file__).parent.parent / "data"
REDUCED = DATA / "ovseg_tiny"
RELATIVE_TOLERANCE = 1e-4  # of the array's largest magnitude, on CPU in float32 (the fixtures' READMEs)


class RecordedBackbone(Backbone):
    """Backbone whose last stages, too large for the reduced copy, return recorded maps."""

    def __init__(self, backbone: Backbone, recorded: Mapping[str, Tensor]):
        super().__init__()
        self.backbone = backbone
        self.recorded = dict(recorded)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.backbone(image) | self.recorded

    def output_shape(self):
        return self.backbone.output_shape()


class Recording:
    """Configuration, inputs and expected outputs of one recorded case, and the model with its weights."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reduced = not (folder / "weights.safetensors").is_file()
        self.inputs = np.load(folder / "inputs.npz", allow_pickle=False)
        self.outputs = np.load(folder / "outputs.npz", allow_pickle=False)
        self.compared: list[tuple[str, float]] = []  # float arrays, with their relative differences

    @cached_property
    def arch(self) -> dict:
        """Return the sizes and settings of a model whose architecture is a dictionary."""
        return json.loads((self.folder / "arch.json").read_text())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        if self.reduced:
            arrays = dict(
                _unpacked(name, array)
                for file in sorted(self.folder.glob("weights*.npz"))
                for name, array in np.load(file).items()
            )
        else:
            arrays = load_file(self.folder / "weights.safetensors")
        return {name: torch.from_numpy(np.asarray(array)) for name, array in _with_all_rows(arrays).items()}

    def config(self, *opts):
        cfg = get_cfg()
        cfg.merge_from_file(self.folder / "config.yaml")
        cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = str(self.folder / "clip.json")
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR = "none"
        cfg.merge_from_list([str(value) for value in opts])
        return cfg

    def model(self, *opts):
        """Return a new model with the recorded weights; ``opts`` are KEY VALUE pairs."""
        if not self.reduced:
            weights = self.folder / "weights.safetensors"
            return load_model(self.config("MODEL.WEIGHTS", weights, *opts), complete=True).eval()
        model = build_model(
            self.config("MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none", *opts)
        )  # it lacks parts of both CLIPs
        own = model.state_dict()
        assert self.weights.keys() <= own.keys() | constant_names(model)
        model.load_state_dict({k: v.to(own[k].dtype) for k, v in self.weights.items() if k in own}, strict=False)
        return model.eval()

    def replace_stages(self, model, recorded: Mapping[str, str]) -> None:
        """Replace stages of the backbone by their recorded output, in the reduced copy.

        Args:
            recorded: stage -> name of the recorded array.
        """
        if self.reduced:
            network = getattr(model, "proposer", model)
            backbone = getattr(network.backbone, "backbone", network.backbone)
            maps = {stage: torch.from_numpy(self.outputs[name]) for stage, name in recorded.items()}
            maps = {stage: x if x.dim() == 4 else x[None] for stage, x in maps.items()}
            network.backbone = RecordedBackbone(backbone, maps)

    def check(self, name: str, actual: Tensor, tolerance: float = RELATIVE_TOLERANCE) -> None:
        """Compare with a recorded array.

        The reduced copy has large maps thinned out, under the name ``...@8``, and lacks some arrays altogether.
        """
        actual = torch.as_tensor(actual).detach().numpy()
        if self.reduced and name not in self.outputs:
            name = f"{name}@8"
            if name not in self.outputs:
                return
            actual = actual[..., ::8, ::8]
        expected = self.outputs[name]
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        if not expected.size:
            return
        if expected.dtype.kind in "biu" or actual.dtype == bool:
            assert (actual == expected).all(), name
        else:
            error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)
            self.compared.append((name, float(error)))
            assert error <= tolerance, f"{name}: relative difference {error:.2e}"

    def report(self) -> str:
        """Return a summary of the comparisons in one sentence."""
        if not self.compared:
            return f"{self.folder.name}: nothing compared"
        name, error = max(self.compared, key=lambda item: item[1])
        return (
            f"{self.folder.name}: {len(self.compared)} float arrays compared, largest relative difference "
            f"{error:.2e} ({name})"
        )


class Parity(Recording):
    """Recording of OVSeg."""

    def names(self, which: str) -> list[str]:
        return [str(name) for name in self.inputs[f"names/{which}"]]

    def request(self, image: int, which: str = "test") -> dict:
        height, width = (int(x) for x in self.inputs[f"img{image}/out_hw"])
        pixels = torch.from_numpy(self.inputs[f"img{image}/image"]).permute(2, 0, 1)
        return {"image": pixels, "height": height, "width": width, "class_names": self.names(which)}

    def play_back(self, model, res5_name: str) -> None:
        self.replace_stages(model, {"res5": res5_name})

    def segment(self, model, image: int, which: str = "test") -> Tensor:
        self.play_back(model, f"img{image}/backbone/res5")
        with torch.no_grad():
            return model([self.request(image, which)])[0]["sem_seg"]


class ScanParity(Recording):
    """Recording of SCAN."""

    @cached_property
    def case(self) -> dict:
        """Return the settings of each run, with their seeds."""
        return json.loads((self.folder / "case.json").read_text())

    def names(self, which: str) -> list[str]:
        """Return the recorded ``class_names`` or ``train_class_names``."""
        return [str(name) for name in self.inputs[which]]

    def request(self, image: int) -> dict:
        height, width = (int(x) for x in self.inputs[f"out_hw{image}"])
        pixels = torch.from_numpy(self.inputs[f"image{image}"]).permute(2, 0, 1)
        return {"image": pixels, "height": height, "width": width, "class_names": self.names("class_names")}

    def play_back(self, model, run: str) -> None:
        """Replace the backbone by its recorded output; ``run``: run0, run1 or train."""
        self.replace_stages(model, {stage: f"{run}/backbone/{stage}" for stage in ("res4", "res5")})


class MaskClipParity(Recording):
    """Recording of MaskCLIP, small enough to be kept whole."""

    def model(self) -> MaskCLIP:
        """Return a new model with the recorded weights."""
        model = build_maskclip(self.arch)
        load_weights(model, self.folder / "weights.safetensors")
        return model

    def head(self) -> ConvolutionalHead:
        """Return the head for a convolutional tower, with its recorded weights."""
        prefix, channels = "cnn.decode_head.", self.arch["cnn"]["c"]
        head = ConvolutionalHead(channels, self.arch["text_channels"], self.arch["cnn_attention_heads"])
        weights = {name: tensor.float() for name, tensor in self.weights.items() if name.startswith(prefix)}
        head.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
        return head

    def image(self, number: int) -> Tensor:
        return torch.from_numpy(self.inputs[f"img{number}/image"]).permute(2, 0, 1)


class LSegParity(Recording):
    """Recording of LSeg, whose architecture is a dictionary."""

    def empty_model(self, **changes):
        """Return a model with random weights; ``changes`` replace entries of the architecture, or parts of them."""
        arch = dict(self.arch)
        for name, value in changes.items():
            arch[name] = arch[name] | value if isinstance(value, dict) else value
        return build_lseg(arch)

    def model(self, **changes):
        """Return a model with the recorded weights."""
        model = self.empty_model(**changes)
        own = model.state_dict()
        assert own.keys() <= self.weights.keys()
        model.load_state_dict({name: self.weights[name].to(tensor.dtype) for name, tensor in own.items()})
        return model

    def names(self, which: str) -> list[str]:
        return [str(name) for name in self.inputs[f"names/{which}"]]

    def request(self, image: int | str, which: str = "labels") -> dict:
        """Return a request; ``image``: a number, or "slide"."""
        name = f"img{image}/image" if isinstance(image, int) else f"{image}/image"
        return {"image": torch.from_numpy(self.inputs[name]).permute(2, 0, 1), "class_names": self.names(which)}

    def training_batch(self) -> list[dict]:
        pairs = zip(self.inputs["train/images"], self.inputs["train/target"], strict=True)
        images = ((torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(target)) for image, target in pairs)
        return [{"image": x, "sem_seg": target, "class_names": self.names("labels")} for x, target in images]


class ZegFormerParity(Recording):
    """Recording of ZegFormer, whose reduced copy has all weights but unused rows of CLIP's token table."""

    @cached_property
    def case(self) -> dict:
        return json.loads((self.folder / "case.json").read_text())

    @cached_property
    def file(self) -> Path:
        """Return a file with the weights."""
        if not self.reduced:
            return self.folder / "weights.safetensors"
        self._temporary = TemporaryDirectory()
        path = Path(self._temporary.name, "weights.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, path)
        return path

    def config(self, *opts):
        cfg = super().config()
        cfg.MODEL.META_ARCHITECTURE = "ZegFormer"
        cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = cfg.MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED = str(self.folder / "clip.json")
        cfg.merge_from_list([str(value) for value in opts])
        return cfg

    def model(self, *opts):
        """Return a new model with the recorded weights; ``opts`` are KEY VALUE pairs."""
        return load_model(self.config("MODEL.WEIGHTS", self.file, *opts), complete=True).eval()

    def names(self, which: str) -> list[str]:
        return [str(name) for name in self.inputs[f"names/{which}"]]

    def request(self, image: int, split: bool = True) -> dict:
        """Return the request for an image; ``split``: with the seen words."""
        height, width = (int(x) for x in self.inputs[f"img{image}/out_hw"])
        pixels = torch.from_numpy(self.inputs[f"img{image}/image"]).permute(2, 0, 1)
        names = self.names("test")
        request = {"image": pixels, "height": height, "width": width, "class_names": names}
        return request | {"seen": [name not in self.names("unseen") for name in names]} if split else request


class SimBaselineParity(Recording):
    """Recording of SimBaseline. Its reduced copy has all weights, but of the table of tokens only the rows in use."""

    @cached_property
    def behaviour(self) -> dict:
        """Return the exceptions of the original by variant, and what trains."""
        return json.loads((self.folder / "behaviour.json").read_text())

    @cached_property
    def extra(self) -> dict[str, Tensor]:
        """Return the prompts of the second shape and the second adapter's embedding of "no object"."""
        return self._tensors("extra")

    def check_recorded(self, name: str, actual: Tensor, tolerance: float = RELATIVE_TOLERANCE) -> None:
        """Compare with an array that only some variants have."""
        if name in self.outputs or f"{name}@8" in self.outputs:
            self.check(name, actual, tolerance)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        if self.reduced:
            arrays = dict(_unpacked(*item) for item in np.load(self.folder / f"{name}.npz").items())
        else:
            arrays = load_file(self.folder / f"weights_{name}.safetensors")
        return {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}

    def config(self, *opts):
        region = "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME"
        cfg = super().config(region, self.folder / "clip.json", *opts)
        cfg.MODEL.META_ARCHITECTURE = "SimBaseline"
        return cfg

    def names(self, which: str) -> list[str]:
        return [str(name) for name in self.inputs[f"names/{which}"]]

    def request(self, image: int, seen: bool = False) -> dict:
        height, width = (int(x) for x in self.inputs[f"img{image}/out_hw"])
        pixels = torch.from_numpy(self.inputs[f"img{image}/image"]).permute(2, 0, 1)
        request = {"image": pixels, "height": height, "width": width, "class_names": self.names("test")}
        return request | ({"seen": self.inputs["trainable_flag"].astype(bool).tolist()} if seen else {})

    def model(self, *opts, state: Mapping[str, Tensor] | None = None):
        """Return a new model with the recorded weights, or those of ``state``; ``opts`` are KEY VALUE pairs."""
        return self._filled(self.config(*opts), self.weights if state is None else state)

    def per_pixel_model(self, *opts):
        """Return the baseline without masks, with its own head."""
        cfg = self.config("MODEL.SEM_SEG_HEAD.NAME", "ZeroPerPixelBaselineHead", *opts)
        cfg.MODEL.META_ARCHITECTURE = "SimBaselinePerPixel"
        others = {name: tensor for name, tensor in self.weights.items() if not name.startswith("sem_seg_head.")}
        return self._filled(cfg, others | self._tensors("per_pixel_head"))

    def _filled(self, cfg, state: Mapping[str, Tensor]):
        cfg.merge_from_list(
            [
                *("MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none"),
                *("MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_WEIGHTS", "none"),
            ]
        )
        model = build_model(cfg)
        region = {
            name.replace("clip_adapter.", "_region_clip_adapter."): tensor
            for name, tensor in state.items()
            if name.startswith("clip_adapter.")
        }
        state = {**region, **self.extra, **state}
        model.load_state_dict({name: state[name].to(own.dtype) for name, own in model.state_dict().items()})
        return model.eval()


def prompt_state(weights: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SimBaseline's weights with the prompts of the second shape."""
    prompts = {
        f"clip_adapter.prompt_learner.{name}": extra[f"shape2/{name}"] for name in ("prefix_prompt", "suffix_prompt")
    }
    return {**weights, **prompts}


def _unpacked(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return arrays of a reduced copy, which stores the two bytes of float16 along the first axis."""
    if not name.endswith("@bytes"):
        return name, array
    values = array.reshape(2, -1).T.copy().view(np.float16)
    return name.removesuffix("@bytes"), values.reshape(array.shape[1:])


def _with_all_rows(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays of which a reduced copy has some rows, ``...@rows``, with zeros for the other ones.

    ``...@places`` are the numbers of the stored rows, and last, that of all rows.
    """
    whole = {name: array for name, array in arrays.items() if not name.endswith(("@rows", "@places"))}
    for name, rows in arrays.items():
        if name.endswith("@rows"):
            name = name.removesuffix("@rows")
            *places, count = arrays[f"{name}@places"]
            whole[name] = np.zeros((count, *rows.shape[1:]), rows.dtype)
            whole[name][places] = rows
    return whole


def load_ovseg() -> Parity:
    return Parity(Path(os.environ.get("OVSEG_PARITY") or REDUCED))


def load_scan() -> ScanParity:
    return ScanParity(Path(os.environ.get("SCAN_PARITY") or DATA / "scan_tiny"))


def load_maskclip() -> MaskClipParity:
    return MaskClipParity(Path(os.environ.get("MASKCLIP_PARITY") or DATA / "maskclip_tiny"))


def load_lseg() -> LSegParity:
    return LSegParity(Path(os.environ.get("LSEG_PARITY") or DATA / "lseg_tiny"))


def load_zegformer() -> ZegFormerParity:
    return ZegFormerParity(Path(os.environ.get("ZEGFORMER_PARITY") or DATA / "zegformer_tiny"))


def load_simbaseline() -> SimBaselineParity:
    return SimBaselineParity(Path(os.environ.get("SIMBASELINE_PARITY") or DATA / "simbaseline_tiny"))
