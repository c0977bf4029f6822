"""Loading of published and own checkpoints into a model, with a report."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ovseg.checkpoint.skip_init import skip_initialisation
from ovseg.checkpoint.state_dicts import (
    MASK_PROMPT_FWD,
    constant_names,
    implied_tensors,
    of_size,
    read_checkpoint,
    read_settings,
    tensor_names,
    tensors_of,
)
from ovseg.errors import OvsegError, argument

logger = logging.getLogger(__name__)

# Share of the model's tensors below which a file is not a checkpoint of the model.
MOSTLY = 0.5
CLIP_ADAPTER = "clip_adapter."
CLIP_PREFIX, ORIGINAL_PREFIX = f"{CLIP_ADAPTER}clip_model.", f"{CLIP_ADAPTER}original_clip."
REGION_CLIP_ADAPTER = "_region_clip_adapter."  # SimBaseline's second CLIP
PREDICTOR = "sem_seg_head.predictor."  # which holds CLIP in ZegFormer
# Tensors that MODEL.CLIP_ADAPTER.CLIP_WEIGHTS provides if a checkpoint lacks them.
_MODELS = (CLIP_ADAPTER, REGION_CLIP_ADAPTER, PREDICTOR)
CLIP_PREFIXES = (ORIGINAL_PREFIX, *(f"{part}clip_model." for part in _MODELS))
# Prefixes of a backbone's names in the model, which files of a backbone alone lack; the second is LSeg's ViT.
BACKBONES = ("backbone.", "pretrained.model.")
# Unused tensors of the official SCAN.pth (specification of SCAN, section 13).
LEFTOVERS = (f"{CLIP_PREFIX}visual.cxt_decoder.", f"{CLIP_PREFIX}visual.learnable_weight")


@dataclass(frozen=True)
class LoadReport:
    """Keys of a model and a file, by the result of loading.

    Attributes:
        loaded: keys that were loaded.
        missing: keys of the model that the file lacks; they keep their values.
        unexpected: keys of the file (as mapped) that the model lacks; they were ignored.
        mis_shaped: key -> (shape in the file, shape in the model).
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mis_shaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for label, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                parts.append(f"{len(keys)} {label} ({key_groups(keys)})")
        return ", ".join(parts)


def load_weights(model: nn.Module, path: str | Path, *, complete: bool = False) -> LoadReport:
    """Load a weight file into ``model``, casting to the model's dtypes.

    The file may have only a backbone, with or without ``backbone.`` in its names.

    Args:
        model: any model; the key maps are those of the systems in this package.
        path: a file (see :func:`ovseg.checkpoint.state_dicts.read_state_dict`), or a name that Detectron2's
            ``PathManager`` resolves (``detectron2://...``).
        complete: raise an error for a file that lacks a part of the proposal network. Training may start from a
            backbone alone; an evaluation with random tensors would be meaningless.

    Raises:
        OvsegError: the file cannot be read or is written to meanwhile, a tensor has another shape, or most of the model
            is missing.
    """
    file = _local_path(path)
    with unchanged(file):
        return _load_weights(model, file, path, complete)


@contextlib.contextmanager
def unchanged(file: str | Path) -> Iterator[None]:
    """Raise OvsegError if a file was written to in the block; not if another took its place."""
    try:
        handle = open(file, "rb")  # noqa: SIM115, closed below
    except OSError:  # which the block names
        yield
        return
    with handle:
        before = os.fstat(handle.fileno())
        yield
        after = os.fstat(handle.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OvsegError(f"{file} was written to while it was loaded: load it again when it is complete")


def _load_weights(model: nn.Module, file: str | Path, path: str | Path, complete: bool) -> LoadReport:
    content = read_checkpoint(file, mapped=True)  # only the copies in the model last
    state = rename_keys(tensors_of(content, file))
    own = model.state_dict()
    state = _complete_backbone_names(_complete_names(state, own, path), own)
    constants = constant_names(model)
    state = {name: tensor for name, tensor in state.items() if name not in constants}
    state = {name: of_size(name, tensor, own) for name, tensor in state.items()}
    state |= implied_tensors(state, model)
    state = _without_unused(state, own, model)
    own |= _loadable(model, state)
    report = LoadReport(
        loaded=tuple(name for name in own if name in state and state[name].shape == own[name].shape),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        mis_shaped={
            name: (tuple(state[name].shape), tuple(own[name].shape))
            for name in own
            if name in state and state[name].shape != own[name].shape
        },
    )
    _refuse_wrong_file(report, path, own, state)
    if complete:
        _refuse_partial(report, path, model)
    found = {name: state[name] for name in report.loaded}  # copying casts to the model's types
    _copy(_loadable(model, found), found)
    model.load_state_dict(_without_other_pixels(found, own, model, path), strict=False)
    _warn_of_prompts(read_settings(file, content), model, path)
    if (clip_adapter := _clip_adapter(model)) is not None:
        clip_adapter.share_equal_tensors()
    # CLIP may have a file of its own, which was read when the model was built
    surprising = [name for name in report.missing if not name.startswith(CLIP_PREFIXES)] or report.unexpected
    logger.log(logging.WARNING if surprising else logging.INFO, "%s: %s", path, report)
    return report


def load_model(cfg: CfgNode, *, complete: bool = False) -> nn.Module:
    """Build the model of a configuration, and load ``MODEL.WEIGHTS`` and the weights of CLIP that they lack.

    Args:
        complete: raise an error for a checkpoint that lacks a part of the proposal network, and do not initialise
            tensors that the checkpoint overwrites. ``MODEL.WEIGHTS`` may be empty only for a model with no weights
            but CLIP's. False to train from a backbone alone or without ``MODEL.WEIGHTS``: the rest is initialised
            randomly. A complete model is compiled and recorded as ``MODEL.COMPILE`` and ``CUDA_GRAPHS`` say.

    Raises:
        OvsegError: see :func:`load_weights`; or CLIP's weights cannot be read or downloaded.
    """
    model = _load_model(cfg, complete)
    if complete and hasattr(model, "accelerate"):
        model.accelerate(cfg.MODEL.COMPILE, cfg.MODEL.CUDA_GRAPHS)
    return model


def _load_model(cfg: CfgNode, complete: bool) -> nn.Module:
    with skip_initialisation() if complete and cfg.MODEL.WEIGHTS else contextlib.nullcontext():
        model = build_model(cfg)
    clip_adapter = _clip_adapter(model)
    if not cfg.MODEL.WEIGHTS:
        if complete and not all(name.startswith(CLIP_ADAPTER) for name in model.state_dict()):
            raise OvsegError("MODEL.WEIGHTS is empty: give the checkpoint of a complete model")
        if clip_adapter is not None:
            clip_adapter.require_weights()
            _warn_of_prompts({}, model, "")
        if hasattr(model, "load_first_weights"):  # those that training starts from
            model.load_first_weights()
        return model
    report = load_weights(model, cfg.MODEL.WEIGHTS, complete=complete)
    if not complete and hasattr(model, "complete_weights"):
        model.complete_weights(report.missing, _local_path(cfg.MODEL.WEIGHTS))
    read_with_clip = CLIP_PREFIXES if clip_adapter is not None and clip_adapter.source.fetch_weights else ()
    if complete and not all(name.startswith(read_with_clip) for name in report.missing):
        model = build_model(cfg)  # initialises tensors that the file lacks
        load_weights(model, cfg.MODEL.WEIGHTS, complete=True)
    return model


def _loadable(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of ``state`` that the model uses although its own state lacks them, by name."""
    return {
        f"{prefix}{name}": tensor
        for prefix, module in getattr(model, "loadable", {}).items()
        for name, tensor in module.state_dict().items()
        if f"{prefix}{name}" in state
    }


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(state[name])


def _clip_adapter(model: nn.Module) -> Any:
    """Return the model's :class:`ovseg.clip.adapter.ClipAdapter`; None for models of others."""
    clip_adapter = getattr(model, "clip_adapter", None)
    return clip_adapter if hasattr(clip_adapter, "share_equal_tensors") else None


def clip_names_in(path: str | Path, prefix: str = CLIP_ADAPTER) -> set[str] | None:
    """Return the names, below a prefix, of the tensors of CLIP in a checkpoint, without reading the tensors.

    Returns:
        None if no checkpoint is named, or it cannot be read, for which :func:`load_weights` raises an error.
    """
    if not path:
        return None
    try:
        names = tensor_names(_local_path(path))
    except OvsegError:
        return None
    parts = [f".{name}".partition(f".{prefix}") for name in names if not name.startswith(LEFTOVERS)]
    return {below for _, mark, below in parts if mark}


def rename_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of old and foreign checkpoints to the names in this package.

    * Old checkpoints without a module for the pixel decoder (specification, section 7): names under
      ``sem_seg_head.`` that belong neither to ``predictor`` nor to ``pixel_decoder`` get ``pixel_decoder.``.
    * Mask2Former's first queries were called ``static_query`` (specification of SCAN, 5.2).
    * :data:`LEFTOVERS` are left out.

    Only names are used: the version numbers in the originals' files are lost when a file is converted.
    """
    head, renamed = "sem_seg_head.", {}
    for name, tensor in state.items():
        if name.startswith(LEFTOVERS):
            continue
        if name.startswith(head) and not name.startswith((f"{head}predictor.", f"{head}pixel_decoder.")):
            name = f"{head}pixel_decoder.{name.removeprefix(head)}"
        name = name.replace(f"{head}predictor.static_query.", f"{head}predictor.query_feat.")
        renamed[name] = tensor
    return renamed


def _complete_names(state: dict[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Remove a prefix that all names of the model have in the file."""
    if not own.keys().isdisjoint(state):
        return state
    last = next(reversed(own))  # of the head or another module of the system; CLIP is in other files, too
    anchors = {last, *[name for name in own if name.startswith("backbone.")][-1:]}
    prefixes = {name.removesuffix(anchor) for name in state for anchor in anchors if name.endswith(f".{anchor}")}
    if len(prefixes) > 1:
        raise OvsegError(f"{path} holds several models, under {' and '.join(sorted(prefixes))}: save one of them alone")
    for prefix in prefixes:
        logger.info("%s: loading the model whose names begin with %s", path, prefix)
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return state


def _complete_backbone_names(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the prefix of the model's backbone to the names of a file of a backbone alone, and remove other tensors."""
    if any(name.startswith(("backbone.", "sem_seg_head.", "clip_adapter.", "pretrained.")) for name in state):
        return state
    for prefix in BACKBONES:
        if prefixed := {prefix + name: tensor for name, tensor in state.items() if prefix + name in own}:
            return prefixed
    return state


def _without_unused(state: dict[str, Tensor], own: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Remove tensors below ``unused_names`` of the model, which it lacks or has in another shape."""
    unused = tuple(getattr(model, "unused_names", ()))
    fits = {name for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    return {name: tensor for name, tensor in state.items() if name in fits or not name.startswith(unused)}


def _refuse_wrong_file(
    report: LoadReport, path: str | Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    if report.mis_shaped:
        name, (theirs, ours) = next(iter(report.mis_shaped.items()))
        raise OvsegError(
            f"{path} does not fit this model: {len(report.mis_shaped)} tensors have another shape, the first is {name} "
            f"with {list(theirs)} instead of {list(ours)}; {_shape_remedy(report.mis_shaped, state)}"
        )
    backbone = [name for name in own if name.startswith(BACKBONES)]
    loaded = set(report.loaded)
    needed = backbone or [name for name in own if not name.startswith(CLIP_PREFIXES)] or list(own)
    if len(loaded) < MOSTLY * len(own) and len(loaded.intersection(needed)) < MOSTLY * len(needed):
        raise OvsegError(
            f"{path} is not a checkpoint of this model: only {len(loaded)} of its {len(own)} tensors are in it; "
            f"{_fitting_configuration(state) or _guess(report)}"
        )


def _refuse_partial(report: LoadReport, path: str | Path, model: nn.Module) -> None:
    frozen = (CLIP_ADAPTER, REGION_CLIP_ADAPTER)  # prompts of another file, an unused embedding of "no object"
    trained = {name for name, p in model.named_parameters() if p.requires_grad or not name.startswith(frozen)}
    trained |= {name for name, _ in model.named_buffers() if name.endswith((".running_mean", ".running_var"))}
    unused = (*CLIP_PREFIXES, *getattr(model, "unused_names", ()))  # read elsewhere, or of no use at inference
    needed = [name for name in report.missing if name in trained and not name.startswith(unused)]
    if needed:
        raise OvsegError(
            f"{path} holds only a part of the model ({len(needed)} tensors are missing, such as {needed[0]}): give a "
            "complete checkpoint as MODEL.WEIGHTS"
        )


def _without_other_pixels(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], model: nn.Module, path: str | Path
) -> dict[str, Tensor]:
    """Remove the preprocessing of a CLIP other than that of the configuration.

    Values that differ only by half precision are loaded: published results were measured with them.
    """
    kept, clip_adapter = dict(state), _clip_adapter(model)
    for name in ("clip_adapter.pixel_mean", "clip_adapter.pixel_std") if clip_adapter is not None else ():
        if name in state and not torch.allclose(state[name].float().cpu(), own[name].cpu(), rtol=0, atol=0.5):
            logger.warning(
                "%s has %s %s of CLIP's input, but %s has %s, which is used: if the checkpoint's CLIP is another one, "
                "name it as MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME (ViT-L-14:TAG, say).",
                path,
                name.rpartition(".")[2],
                [round(value, 1) for value in state[name].flatten().tolist()[:3]],
                clip_adapter.source.name,
                [round(value, 1) for value in own[name].flatten().tolist()],
            )
            del kept[name]
    return kept


def _warn_of_prompts(settings: Mapping[str, Any], model: nn.Module, path: str | Path) -> None:
    """Warn of mask prompts that are used but absent, or not used as the metadata of the file states."""
    users = [namer for namer in getattr(model, "namers", ()) if hasattr(namer, "mask_prompts")]
    ours = any(namer.mask_prompts for namer in users) if users else None
    prompts = model.state_dict().get(f"{CLIP_PREFIX}visual.mask_embedding")
    if ours and prompts is not None and not prompts.any():
        # the published training configurations use prompts, and start from a plain CLIP (specification 8 and 9.2)
        logger.warning(
            "CLIP %s HAS NO MASK PROMPTS (visual.mask_embedding is all zeros), but MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD "
            "is True: masked patches become zeros, which makes its scores worse (training does not use them). Set the "
            "key to False, or give a CLIP with tuned prompts (tools/finetune_clip.py, tools/replace_clip.py).",
            model.clip_adapter.source.name,
        )
    wanted = settings.get(MASK_PROMPT_FWD)
    if wanted is not None and ours is not None and prompts is not None and str(wanted) != str(ours):
        logger.warning(
            "%s was made to be used with %s %s, but the model has %s: CLIP's scores will be worse. Set the key.",
            path,
            MASK_PROMPT_FWD,
            wanted,
            ours,
        )


def _fitting_configuration(state: Mapping[str, Tensor]) -> str:
    """Return a hint with the configuration that fits a checkpoint, the end of a message; "" if there is none."""
    if f"{PREDICTOR}bg_feature" in state:
        depth = "R101" if "backbone.res4.6.conv1.weight" in state else "R50"
        name = f"configs/zegformer_{depth}_coco171_eval.yaml"
        return f"it looks made with ZegFormer: give {name} as {argument('--config-file')}"
    embedding = state.get(f"{CLIP_ADAPTER}non_object_embedding")
    swin, resnet = (any(name.startswith(f"backbone.{part}") for name in state) for part in ("layers.0.", "res2."))
    if embedding is None or embedding.dim() != 2 or swin == resnet:
        return ""
    kind = "scan" if any(name.startswith("fusion_decoder.") for name in state) else "ovseg"
    files = _CONFIGURATIONS.get((kind, "swin" if swin else "resnet", embedding.shape[1]))
    return f"it looks made with {files}: give that as {argument('--config-file')}" if files else ""


# By system, backbone and dimension of CLIP's joint space.
_CONFIGURATIONS = {
    ("ovseg", "swin", 768): "configs/ovseg_swinB_vitL_bs32_120k.yaml (to try it, configs/ovseg_swinB_vitL_demo.yaml)",
    ("ovseg", "resnet", 512): "configs/ovseg_R101c_vitB_bs32_120k.yaml",
    ("scan", "swin", 768): "configs/scan_vitL.yaml (to try it, configs/scan_vitL_demo.yaml)",
    ("scan", "swin", 512): "configs/scan_vitB.yaml",
    ("ovseg", "resnet", 128): "configs/toy/ovseg_toy.yaml",
    ("scan", "resnet", 128): "configs/toy/scan_toy.yaml",
}


def _shape_remedy(mis_shaped: Mapping[str, tuple], state: Mapping[str, Tensor]) -> str:
    if any(name.endswith("mask_embedding") for name in mis_shaped) and len(mis_shaped) == 1:
        return "set MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH to the first of its dimensions"
    if fitting := _fitting_configuration(state):
        return fitting
    if any(name.startswith("clip_adapter.") for name in mis_shaped):
        return "it was made with another CLIP: set MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME and SEM_SEG_HEAD.EMBEDDING_DIM"
    return f"use the {argument('--config-file')} that it was trained with"


# Kinds of files, by a part of their names; the first that matches is used.
_SIGNATURES = (
    ("sem_seg_head.predictor.query_feat.", "a Mask2Former-based checkpoint (SCAN)"),
    ("pretrained.act_postprocess1.", "an LSeg checkpoint: use configs/lseg_vitL16_384.yaml"),
    ("img_encoder.", "an OVSegmentor or GroupViT checkpoint: use configs/ovsegmentor_vitB_stage1.yaml"),
    ("visual.transformer.resblocks.", "a CLIP model: give it as MODEL.CLIP_ADAPTER.CLIP_WEIGHTS"),
    ("layers.0.blocks.0.attn.qkv", "a Swin backbone of other sizes"),
    ("res2.0.conv1", "a Detectron2 ResNet: set MODEL.BACKBONE.NAME to build_resnet_deeplab_backbone"),
    ("layer1.0.conv1", "a torchvision ResNet: convert it with `tools/convert_checkpoint.py torchvision`"),
    ("roi_heads.", "a Detectron2 detector"),
)


def _guess(report: LoadReport) -> str:
    for part, meaning in _SIGNATURES:
        if any(part in name for name in report.unexpected):
            return f"it looks like {meaning}"
    return f"its names are like {', '.join(report.unexpected[:3]) or 'none'}"


def key_groups(keys: Sequence[str]) -> str:
    """Return the first two parts of keys with counts, for messages."""
    counts: dict[str, int] = {}
    for key in keys:
        group = ".".join(key.split(".")[:2])
        counts[group] = counts.get(group, 0) + 1
    return ", ".join(f"{group} x{count}" for group, count in counts.items())


def _local_path(path: str | Path) -> str:
    try:
        return PathManager.get_local_path(str(path))
    except Exception as error:  # any type, by the download handler
        raise OvsegError(
            f"cannot fetch {path} ({error}): download it on a machine with network and give the file as MODEL.WEIGHTS"
        ) from error
