"""``LSeg``: language-driven semantic segmentation (Li et al., ICLR 2022, arXiv 2201.03546).

Figure 2 of the paper::

    image -> ViT -> decoder of DPT -> pixel embeddings --+-> cosine / 0.07 -> spatial regularisation -> x 2 -> logits
    words -> CLIP's text tower (frozen) -> embeddings ---+
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from open_clip.model import CLIP
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ovseg.checkpoint.loading import clip_names_in
from ovseg.clip.adapter import KEYS, load_clip
from ovseg.clip.model import find_clip
from ovseg.clip.text import TextEmbedder, embed_dim
from ovseg.clip.tokenizer import build_tokenizer
from ovseg.config import DEFAULTS
from ovseg.errors import OvsegError, argument_names, shown
from ovseg.io.devices import DTYPES
from ovseg.io.files import cache_dir, expand_user
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.propose_and_name import check_model, request_arguments
from ovseg.naming.dpt import Decoder, ResNetStages, SpatialBlock, ViTStages
from ovseg.naming.language_pixels import SCALE, LanguagePixels

CLIP_NAMES = "clip_pretrained."  # before CLIP's names in a checkpoint
TEMPLATES = ("{}",)  # labels as they are


class Backbone(NamedTuple):
    """Image network and CLIP of a value of ``MODEL.LSEG.BACKBONE``.

    Attributes:
        network: timm's name.
        clip: OpenAI's name of the CLIP whose text tower is used.
        hooks, channels: see :class:`ovseg.naming.dpt.ViTStages`; none for a ResNet.
    """

    network: str
    clip: str
    hooks: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()


BACKBONES = {
    "clip_vitl16_384": Backbone("vit_large_patch16_384", "ViT-B/32", (5, 11, 17, 23), (256, 512, 1024, 1024)),
    "clipRN50x16_vitl16_384": Backbone("vit_large_patch16_384", "RN50x16", (5, 11, 17, 23), (256, 512, 1024, 1024)),
    "clip_vitb32_384": Backbone("vit_base_patch32_384", "ViT-B/32", (2, 5, 8, 11), (96, 192, 384, 768)),
    "clip_resnet101": Backbone("resnet101", "ViT-B/32"),
}


@META_ARCH_REGISTRY.register()
def LSeg(cfg: CfgNode) -> PerPixel:
    """Return the model; :class:`PerPixel` documents its inputs and outputs.

    CLIP follows from ``MODEL.LSEG.BACKBONE``, unless ``MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME`` names another one. Words
    are encoded without a prompt, except for those of a request's ``templates``.
    """
    check_model(cfg, with_head=False)
    lseg, adapter, backbone = cfg.MODEL.LSEG, cfg.MODEL.CLIP_ADAPTER, BACKBONES[cfg.MODEL.LSEG.BACKBONE]
    name = adapter.CLIP_MODEL_NAME
    name = backbone.clip if name == DEFAULTS["MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME"] else name
    held = clip_names_in(cfg.MODEL.WEIGHTS, CLIP_NAMES)
    held = None if held is None else {f"clip_model.{tensor}" for tensor in held}
    with argument_names(KEYS):
        clip, tokenizer = load_clip(find_clip(name, adapter.CLIP_WEIGHTS), held=held, device=cfg.MODEL.DEVICE)
    network = timm.create_model(backbone.network, pretrained=False)
    if backbone.hooks:
        stages = ViTStages(network, backbone.hooks, backbone.channels, lseg.READOUT)
    else:
        stages = ResNetStages(network)
    cache, dtype = adapter.TEXT_CACHE_DIR, DTYPES[adapter.PRECISION]
    text = TextEmbedder(
        clip,
        tokenizer,
        TEMPLATES,
        autocast=partial(torch.autocast, dtype=dtype, enabled=dtype is not torch.float32),
        precision=adapter.PRECISION,
        truncate=adapter.TRUNCATE_PROMPTS,
        cache_dir=None if cache == "none" else expand_user(cache) if cache else cache_dir() / "text",
    )
    scorer = LanguagePixels(
        clip=clip,
        text=text,
        stages=stages,
        decoder=Decoder(
            stages.channels,
            lseg.NUM_FEATURES,
            embed_dim(clip),
            _head_block(lseg.ARCH_OPTION, lseg.BLOCK_DEPTH, lseg.ACTIVATION),
        ),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
    return _model(scorer, class_chunk_size=cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE, **request_arguments(cfg))


def build_lseg(arch: Mapping[str, Any]) -> PerPixel:
    """Return an LSeg of any sizes on the CPU, with random weights, in evaluation mode.

    Args:
        arch: ``vit`` (``patch``, ``grid``: side of its native grid, ``width``, ``depth``, ``heads``, ``mlp_ratio``,
            ``layer_norm_eps``, ``hooks``, ``readout``), ``reassemble_channels``, ``features``, ``out_channels``,
            ``clip_text`` (``embed_dim``, ``context_length``, ``vocab_size``, ``width``, ``heads``, ``layers``,
            ``activation``); optional ``ignore_index`` -1, ``arch_option`` 0, ``block_depth`` 0, ``activation`` lrelu.
            The ViT has no classifier, and CLIP no image tower: they are not used.

    Raises:
        OvsegError: an entry is missing or has a value that cannot be built.
    """
    try:
        vit, text = arch["vit"], arch["clip_text"]
        if not abs(arch.get("logit_scale", SCALE) - SCALE) < 1e-6:
            raise OvsegError(f"logit_scale is {arch['logit_scale']}: LSeg's is {SCALE}")
        network = VisionTransformer(
            img_size=vit["grid"] * vit["patch"],
            patch_size=vit["patch"],
            embed_dim=vit["width"],
            depth=vit["depth"],
            num_heads=vit["heads"],
            mlp_ratio=vit.get("mlp_ratio", 4),
            norm_layer=partial(nn.LayerNorm, eps=vit.get("layer_norm_eps", 1e-6)),
            num_classes=0,
        )
        stages = ViTStages(network, vit["hooks"], arch["reassemble_channels"], vit.get("readout", "project"))
        block = _head_block(arch.get("arch_option", 0), arch.get("block_depth", 0), arch.get("activation", "lrelu"))
        clip, tokenizer = _text_tower(text)
        decoder = Decoder(stages.channels, arch["features"], arch["out_channels"], block)
    except KeyError as error:
        raise OvsegError(f"the architecture of LSeg lacks {error}: see build_lseg") from error
    except (TypeError, ValueError, ArithmeticError, IndexError, AssertionError, RuntimeError) as error:
        if isinstance(error, OvsegError):
            raise
        raise OvsegError(f"the architecture of LSeg has a wrong value ({error}): see build_lseg") from error
    if arch["out_channels"] != text["embed_dim"]:
        raise OvsegError(
            f"out_channels is {arch['out_channels']}, but the text embeddings have {text['embed_dim']} dimensions: "
            "both must be the same"
        )
    embedder = TextEmbedder(clip, tokenizer, TEMPLATES, autocast=partial(torch.autocast, enabled=False))
    ignore = arch.get("ignore_index", -1)
    return _model(LanguagePixels(clip=clip, text=embedder, stages=stages, decoder=decoder, ignore_label=ignore)).eval()


def _model(scorer: LanguagePixels, **arguments: Any) -> PerPixel:
    """Return the model, with the beginnings of the names in published files that it may lack."""
    model = PerPixel(scorer=scorer, **arguments)
    model.unused_names = (f"{CLIP_NAMES}visual.", "pretrained.model.head.", "scratch.head_block.")
    return model


def _head_block(option: int, depth: int, activation: str) -> SpatialBlock | None:
    return SpatialBlock(option, depth, activation) if option else None


def _text_tower(text: Mapping[str, Any]) -> tuple[CLIP, Any]:
    """Return a CLIP without its image tower, and its tokenizer."""
    sizes = {name: text[name] for name in ("context_length", "vocab_size", "width", "heads", "layers")}
    smallest = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}  # of an image tower, which is removed
    activation = text.get("activation", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise OvsegError(f"activation of clip_text is {shown(activation)}: give quick_gelu or gelu")
    clip = CLIP(text["embed_dim"], smallest, sizes, quick_gelu=activation == "quick_gelu")
    del clip.visual
    return clip.eval(), build_tokenizer("LSeg", sizes)
