"""``SCAN``: Mask2Former's proposals, calibrated by CLIP's semantics (Liu et al., CVPR 2024, arXiv 2312.04089)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ovseg.clip.adapter import unit
from ovseg.clip.context_adapter import ContextClipAdapter
from ovseg.clip.contextual_shift import Context
from ovseg.clip.whole_image import WholeImages
from ovseg.errors import OvsegError
from ovseg.meta_arch.calibration import HEADS, LFM, FusionDecoder, LightweightTransformer
from ovseg.meta_arch.naming import ClipOpinion, Proposals, normalise_over_classes
from ovseg.meta_arch.segmenter_base import ProposalNamer

VARIANTS = ("auto", "plain", "log")
LOG_DATASETS = ("ade20k_full_sem_seg_val", "pascal_context_459_sem_seg_val")  # those of the original's "auto"


@META_ARCH_REGISTRY.register()
class SCAN(ProposalNamer):
    """Queries that have looked at CLIP's whole image, and crops that know their context.

    1. Mask2Former proposes masks, with an embedding for each.
    2. :meth:`look`: the original CLIP sees the whole image.
    3. :meth:`calibrate`: its patch tokens, enhanced in the frequency domain, are read by the embeddings; its image
       feature is added to them.
    4. A second CLIP sees the masked crops, with part of their background replaced by the whole image's class token
       (:class:`ovseg.clip.context_adapter.ContextClipAdapter`).
    5. :meth:`fuse`: the geometric mean of both decides.

    See :class:`ProposalNamer` for inputs and outputs.

    Args:
        frequency_sigmas: width of the frequency filter for each of the adapter's ``kept_depths``.
        feedforward: width between the two linear layers of the lightweight transformer's blocks.
        ensemble_variant: "plain", "log" or "auto", see the key of that name.
        parts: the arguments of :class:`ProposalNamer`.
    """

    adapter_class = ContextClipAdapter

    @configurable
    def __init__(
        self,
        *,
        frequency_sigmas: Sequence[float],
        feedforward: int = 2048,
        ensemble_variant: str = "auto",
        **parts: Any,
    ):
        super().__init__(**parts)
        depths = self.clip_adapter.kept_depths
        if len(frequency_sigmas) != len(depths) or min(frequency_sigmas) <= 0:
            raise OvsegError(
                f"MODEL.FREQUENCY_SIGMA is {list(frequency_sigmas)}: give one positive number for each of "
                f"MODEL.SELECT_ORI_CLIP_ID {list(depths)}"
            )
        if ensemble_variant not in VARIANTS:
            raise OvsegError(
                f"MODEL.CLIP_ADAPTER.ENSEMBLE_VARIANT is {ensemble_variant!r}; choose one of {', '.join(VARIANTS)}"
            )
        self.ensemble_variant = ensemble_variant
        visual, dim = self.clip_adapter.original_clip, self.clip_adapter.embed_dim
        if dim % HEADS:
            raise OvsegError(
                f"CLIP {self.clip_adapter.source.name} has embeddings of {dim} dimensions, which {HEADS} attention "
                f"heads cannot share: choose a CLIP whose dimension is a multiple of {HEADS}"
            )
        width = visual.conv1.out_channels
        self.learnable_weight = nn.Parameter(torch.tensor([0.1]))
        self.LFM = LFM(width, visual.grid_size, frequency_sigmas)
        self.oriclip_mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(width, dim), fc2=nn.Linear(dim, dim)))
        self.fusion_decoder = FusionDecoder(dim)
        self.lightweight_transformer = LightweightTransformer(dim, feedforward)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        _check_sizes(cfg, arguments["clip_adapter"])
        return arguments | {
            "frequency_sigmas": cfg.MODEL.FREQUENCY_SIGMA,
            "feedforward": cfg.MODEL.SCAN_FEEDFORWARD,
            "ensemble_variant": cfg.MODEL.CLIP_ADAPTER.ENSEMBLE_VARIANT,
        }

    def look(self, images: Sequence[Tensor]) -> WholeImages:
        """The original CLIP's tokens of whole images, (3, H, W) each, 0 .. 255."""
        return self.clip_adapter.look(images, self.size_divisibility)

    def calibrate(self, embeddings: Tensor, seen: WholeImages) -> Tensor:
        """Queries' embeddings (B, N, D) after they have read what CLIP saw; each by itself."""
        enhanced = self.LFM(seen.patches)  # (B, levels, width, g, g)
        memory = self.oriclip_mlp(enhanced.flatten(3).transpose(2, 3).flatten(1, 2))  # (B, levels * g * g, D)
        image = self.learnable_weight * unit(seen.features)[:, None]  # (B, 1, D)
        return self.lightweight_transformer(self.fusion_decoder(embeddings, memory) + image)

    def context(self, request: Mapping[str, Any], seen: WholeImages, index: int) -> Context:
        """The whole image's class tokens, and the seed of its draws."""
        return self.clip_adapter.context(seen, index, request["image"])

    def fuse(self, found: Proposals, clip: ClipOpinion, weight: float) -> Tensor:
        """Both opinions as one, float32 (Q, K); the variant "log" is for two opinions only."""
        fused = super().fuse(found, clip, weight)
        log = self.ensemble_variant == "log" or (self.ensemble_variant == "auto" and found.dataset_name in LOG_DATASETS)
        if log and weight > 0 and clip.probabilities is not None:
            return normalise_over_classes(fused, found.own)
        return fused


@META_ARCH_REGISTRY.register()
def SCANDEMO(cfg) -> SCAN:
    """The published name of :class:`SCAN` for single pictures: one word gets "others" beside it, "auto" is "plain"."""
    variant = cfg.MODEL.CLIP_ADAPTER.ENSEMBLE_VARIANT
    return SCAN(cfg, add_others=True, ensemble_variant="plain" if variant == "auto" else variant)


def _check_sizes(cfg, adapter: ContextClipAdapter) -> None:
    """The keys that spell out CLIP's sizes must be right."""
    visual, name = adapter.original_clip, cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME
    sizes = {
        "SCAN_DIM": adapter.embed_dim,
        "CLIP_VISION_DIM": visual.conv1.out_channels,
        "PATCH_SIZE": visual.grid_size[0],
    }
    for key, size in sizes.items():
        if cfg.MODEL[key] != size:
            raise OvsegError(f"MODEL.{key} is {cfg.MODEL[key]}, but CLIP {name} has {size}: set the key to {size}")
