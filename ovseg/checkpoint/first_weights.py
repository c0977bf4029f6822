"""Weights that the training of OVSegmentor starts from: random ones, and those of published vision transformers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint.loading import load_weights
from ovseg.checkpoint.state_dicts import read_state_dict, tensor_names
from ovseg.errors import OvsegError, argument_names

logger = logging.getLogger(__name__)
OWN = "MODEL.OVSEGMENTOR"
KEY = f"{OWN}.IMG_ENCODER.IMGNET_PRETRAINED"
VIT = ("patch_embed.proj.", "pos_embed", "layers.0.blocks.", "layers.1.blocks.", "norm.", "proj")
STAGE1 = f"{OWN}.STAGE1_CHECKPOINT"
TEACHER = "img_encoder_momentum."  # in checkpoints of stage 2
_VISUAL = "visual."
POOLER = ".pooler."  # of BERT, unused: files may lack it
# Names of OpenAI's CLIP, below ``visual.``, and those of timm.
_CLIP_BLOCK = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_CLIP_REST = {
    "conv1.": "patch_embed.proj.",
    "positional_embedding": "pos_embed",
    "ln_post.": "norm.",
    "proj": "proj",
}


def initialise(module: nn.Module) -> None:
    """Initialise a linear layer or LayerNorm; an argument of :meth:`torch.nn.Module.apply`.

    Linear weights are drawn from a normal distribution of deviation 0.02, truncated at +-2; biases are 0.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class FirstWeights:
    """What the training of OVSegmentor starts from.

    Attributes:
        stage1: checkpoint of stage 1; "" for the others.
        kind: of the image encoder's: ``dino``, ``dinob8``, ``dinos16``, ``dinos8``, ``imgnet``, ``clip``, ``vit`` (with
            names of timm or CLIP, whatever its patches) or ``none``.
        image: file of these.
        fixed: do not train them, but for the positions.
        text: file or folder of the text encoder's; "" for those of its name.
        text_pretrained: see :meth:`ovseg.clip.bert.TextEncoder.start_from`.
    """

    stage1: str = ""
    kind: str = "none"
    image: str = ""
    fixed: bool = False
    text: str = ""
    text_pretrained: bool = False

    @classmethod
    def from_keys(cls, keys: CfgNode) -> FirstWeights:
        """Return the first weights of ``MODEL.OVSEGMENTOR``."""
        image, text = keys.IMG_ENCODER, keys.TEXT_ENCODER
        own = (image.IMGNET_PRETRAINED, image.IMGNET_PRETRAINED_CHECKPOINT, image.FIXED, text.WEIGHTS, text.PRETRAINED)
        return cls(keys.STAGE1_CHECKPOINT, *own)

    def load_stage1(self, model: nn.Module) -> None:
        """Load the checkpoint of stage 1 into a model of stage 2.

        Raises:
            OvsegError: it cannot be read, is one of stage 2, or lacks a part of the model.
        """
        with argument_names({"weights": STAGE1}):
            check_stage(self.stage1, 1, first=True)
            report = load_weights(model, self.stage1)
        if lacking := [name for name in report.missing if POOLER not in name]:
            raise OvsegError(
                f"{STAGE1} {self.stage1} lacks {len(lacking)} tensors, such as {lacking[0]}: give a "
                "complete checkpoint of a stage 1 with the same losses but USE_MASKLOSS"
            )


def check_stage(path: str, stage: int, first: bool) -> None:
    """Check that a checkpoint of OVSegmentor is of a stage of the training; only those of stage 2 have a teacher.

    Args:
        path: the file.
        stage: 1 or 2.
        first: stage 2 starts from the checkpoint; else its own stage goes on from it.

    Raises:
        OvsegError: it is of the other stage.
    """
    if (found := 2 if any(name.startswith(TEACHER) for name in tensor_names(path)) else 1) == stage:
        return
    what = f"{path} is a checkpoint of stage {found}"
    if first:
        raise OvsegError(
            f"{what}, but {STAGE1} (checkpoint.stage1_checkpoint) is one of stage 1, from which stage 2 starts: give "
            "that; to train on from this one, give it as MODEL.WEIGHTS (main_pretrain --resume)"
        )
    if stage == 2:
        raise OvsegError(
            f"{what}, but stage 2 is trained: give it as {STAGE1} (checkpoint.stage1_checkpoint), not as MODEL.WEIGHTS "
            "(main_pretrain --resume)"
        )
    raise OvsegError(
        f"{what}, but stage 1 is trained, which has no mask loss: give one of stage 1 as MODEL.WEIGHTS (main_pretrain "
        "--resume), or train by the configuration of stage 2"
    )


def load_vit(encoder: nn.Module, kind: str, path: str, first_depth: int) -> None:
    """Load a plain vision transformer into a group encoder; its grouping block and group tokens stay random.

    Args:
        encoder: see :class:`ovseg.proposals.group_tokens.GroupEncoder`.
        kind: see :class:`FirstWeights`; nothing is loaded for ``none``.
        path: the file.
        first_depth: see :func:`vit_in_stages`.

    Raises:
        OvsegError: no file is named, it cannot be read, or it does not fit.
    """
    if kind == "none":
        return
    if not path:
        raise OvsegError(f"{KEY} is {kind}, but no file is named: set {KEY}_CHECKPOINT, or {KEY} to none")
    with argument_names({"weights": f"{KEY}_CHECKPOINT"}):
        state, own = vit_in_stages(read_state_dict(path), first_depth), encoder.state_dict()
    if kind == "vit":
        state = _other_patches(state, own, path)
    found = {name: tensor for name, tensor in state.items() if name in own}
    wrong = [name for name, tensor in found.items() if tensor.shape != own[name].shape]
    absent = [name for name in own if name.startswith(VIT) and name not in found]
    absent = [name for name in absent if (kind, name) != ("clip", "patch_embed.proj.bias")]
    if wrong or absent:
        reason = (
            f"{wrong[0]} has {list(found[wrong[0]].shape)} instead of {list(own[wrong[0]].shape)}"
            if wrong
            else (f"it lacks {absent[0]}")
        )
        raise OvsegError(f"{path} is not a vision transformer of this size ({reason}): correct {KEY}_CHECKPOINT")
    encoder.load_state_dict(found, strict=False)
    logger.info("image encoder: %d tensors from %s", len(found), path)


def _other_patches(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the tensors of a vision transformer for other sides of images and patches, and without a bias of patches.

    The kernel of smaller patches is the mean of the larger one's pixels: their tokens are those of enlarged patches.
    """
    state = {"patch_embed.proj.bias": torch.zeros_like(own["patch_embed.proj.bias"])} | dict(state)
    kernel, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    size, count = own["patch_embed.proj.weight"].shape[2:], len(own["pos_embed"])
    if kernel is not None and kernel.dim() == 4 and kernel.shape[2:] != size:
        logger.info("%s has patches of %d pixels: its kernel is resized to %d", path, kernel.shape[2], size[0])
        factor = kernel.shape[2] * kernel.shape[3] / (size[0] * size[1])
        state["patch_embed.proj.weight"] = F.interpolate(kernel.float(), size, mode="area") * factor
    if positions is not None and len(positions) != count:
        logger.info("%s has %d positions: they are resized to %d", path, len(positions), count)
        before, after = (round(number**0.5) for number in (len(positions), count))
        table = positions.float().T.unflatten(1, (before, -1))[None]
        table = F.interpolate(table, (after, after), mode="bicubic", align_corners=False)
        state["pos_embed"] = table[0].flatten(1).T
    return state


def freeze_vit(encoder: nn.Module, kind: str) -> None:
    """Do not train the parameters of a group encoder that :func:`load_vit` loads, but for the positions."""
    for name, parameter in encoder.named_parameters():
        if name.startswith(VIT) and name != "pos_embed" and (kind, name) != ("clip", "patch_embed.proj.bias"):
            parameter.requires_grad_(False)


def vit_in_stages(state: Mapping[str, Tensor], first_depth: int) -> dict[str, Tensor]:
    """Return the tensors of a plain vision transformer under the names of a group encoder (specification 2.6).

    Args:
        state: with the names of DINO and timm (``blocks.0.attn.qkv.weight``) or of OpenAI's CLIP
            (``visual.transformer.resblocks.0.attn.in_proj_weight``).
        first_depth: blocks of the first stage; the others are of the second.

    Returns:
        ``patch_embed``, ``layers.*.blocks.*``, ``norm``, ``proj`` of CLIP, and ``pos_embed`` (N, D) without the row of
        the class token. Other tensors (class token, head) are left out.
    """
    if visual := {name.removeprefix(_VISUAL): tensor for name, tensor in state.items() if name.startswith(_VISUAL)}:
        state = _names_of_timm(visual)
    found = {}
    for name, tensor in state.items():
        if block := re.match(r"blocks\.(\d+)\.(.+)", name):
            index = int(block[1])
            stage, place = (0, index) if index < first_depth else (1, index - first_depth)
            found[f"layers.{stage}.blocks.{place}.{block[2]}"] = tensor
        elif name == "pos_embed":
            found[name] = (tensor[0] if tensor.dim() == 3 else tensor)[1:]
        elif name.startswith(("patch_embed.", "norm.")) or name == "proj":
            found[name] = tensor
    return found


def _names_of_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if block := re.match(r"transformer\.resblocks\.(\d+)\.(.+)", name):
            for old, new in _CLIP_BLOCK.items():
                if block[2].startswith(old):
                    renamed[f"blocks.{block[1]}.{new}{block[2].removeprefix(old)}"] = tensor
        else:
            for old, new in _CLIP_REST.items():
                if name == old or (old.endswith(".") and name.startswith(old)):
                    renamed[new + name.removeprefix(old)] = tensor
    return renamed
