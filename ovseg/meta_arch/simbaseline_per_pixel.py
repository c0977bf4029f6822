"""``SimBaselinePerPixel``: the baseline of SimBaseline without masks (Xu et al., arXiv 2112.14757, section 3.2).

::

    image --+-> backbone -> pixel decoder -> embedding of each pixel . CLIP's text embeddings -> classes --+-> mean
            +-> CLIP, whole image -> classes, the same for all pixels -------------------------------------+
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_sem_seg_head
from detectron2.structures import ImageList
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.vit import encode_any_size, is_plain_vit
from ovseg.config.limits import check_kind
from ovseg.data.requested_words import seen_classes
from ovseg.errors import OvsegError, shown
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.propose_and_name import check_model, request_arguments
from ovseg.meta_arch.simbaseline import check_prompts, text_adapter
from ovseg.meta_arch.word_model import output_size
from ovseg.naming import QueryEmbedding, Scores, SeenUnseenMean
from ovseg.naming.scores import best_synonym
from ovseg.proposals.network import PixelNormalizer, checked_backbone
from ovseg.proposals.views import Part, Views
from ovseg.vocabulary import Vocabulary

HEAD = "ZeroPerPixelBaselineHead"
STRIDE = 4  # of the embeddings


@SEM_SEG_HEADS_REGISTRY.register()
class ZeroPerPixelBaselineHead(nn.Module):
    """Head that predicts an embedding in CLIP's joint space for every place of a map of stride 4.

    Args:
        pixel_decoder: of MaskFormer, see :class:`ovseg.proposals.maskformer.BasePixelDecoder`.
        mask_dim: channels of its features.
        embedding_dim: D.
    """

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, mask_dim: int, embedding_dim: int):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = Conv2d(mask_dim, embedding_dim, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "pixel_decoder": SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)(cfg, input_shape),
            "mask_dim": head.MASK_DIM,
            "embedding_dim": head.EMBEDDING_DIM,
        }

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return embeddings (B, D, H / 4, W / 4), not normalised."""
        return self.predictor(self.pixel_decoder(features)[0])


class PixelEmbeddings(Part):
    """Scorer of each pixel by the cosines of its embedding, fused with CLIP's scores of the whole image.

    Args:
        backbone, sem_seg_head: the network; the head is a :class:`ZeroPerPixelBaselineHead`.
        clip_adapter: CLIP.
        pixel_mean, pixel_std: of the backbone's input, RGB, 0 .. 255.
        ignore_label: value of pixels without a class.
        fuse: of the two scores. With a weight above 1, and with ``ensemble`` False, CLIP is not used.
        ensemble: use CLIP's scores of the whole image.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        clip_adapter: ClipAdapter,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        ignore_label: int,
        fuse: SeenUnseenMean,
        ensemble: bool = True,
    ):
        super().__init__()
        self.backbone, self.sem_seg_head, self.clip_adapter = backbone, sem_seg_head, clip_adapter
        self.normalize = PixelNormalizer(pixel_mean, pixel_std)
        self.size_divisibility = backbone.size_divisibility  # SIZE_DIVISIBILITY is that of MaskFormer
        self.ignore_label, self.fuse, self.ensemble = ignore_label, fuse, ensemble
        if ensemble and not is_plain_vit(clip_adapter.clip_model.visual):
            raise OvsegError(
                f"CLIP {clip_adapter.source.name} takes images of one size only, but classifies whole images here: "
                "choose a plain vision transformer such as ViT-B/16, or set MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE to False"
            )

    def forward(self, views: Views, words: Sequence[Vocabulary]) -> list[Tensor]:
        """Return scores float32 (K, height, width) of each image, at the size of its result."""
        embeddings = self.embed(views)
        return [self._scores(views, *of_image) for of_image in zip(range(len(words)), embeddings, words, strict=True)]

    def embed(self, views: Views) -> Tensor:
        """Return embeddings of the padded batch, (B, D, H / 4, W / 4)."""
        batch = ImageList.from_tensors([self.normalize(image) for image in views.images], self.size_divisibility)
        return self.sem_seg_head(self.backbone(batch.tensor))

    def _scores(self, views: Views, index: int, embedding: Tensor, words: Vocabulary) -> Tensor:
        request, (height, width) = views.requests[index], views.images[index].shape[1:]
        text = self.clip_adapter.text_matrix(words.texts, words.templates)
        # enlarged to the padded input first, then cut and resized to the result, as in the original
        enlarged = F.interpolate(embedding[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)
        enlarged = enlarged[..., :height, :width]
        size = output_size(request)
        pixels = F.interpolate(enlarged, size, mode="bilinear", align_corners=False)[0].flatten(1).T  # (pixels, D)
        logits = best_synonym(self.clip_adapter.similarity(pixels, text), words)
        scores = [Scores(logits[:, :-1].softmax(-1))]
        if self.ensemble and self.fuse.weight <= 1:
            clip = self._whole_image(views.images[index], text, words).expand(len(scores[0].probabilities), -1)
            scores.append(Scores(clip))
        seen = seen_classes(request, words, False).to(embedding.device)
        return self.fuse(scores, None, seen).T.unflatten(1, size)

    def _whole_image(self, image: Tensor, text: Tensor, words: Vocabulary) -> Tensor:
        """Return CLIP's probabilities of the classes for a whole image at its own size, (1, K)."""
        clip = self.clip_adapter
        pixels = (image[None] - clip.pixel_mean) / clip.pixel_std
        visual = clip.clip_model.visual
        missing = [max(0, patch - side) for patch, side in zip(visual.conv1.kernel_size, image.shape[1:], strict=True)]
        with clip.autocast(pixels.device.type):
            feature = encode_any_size(visual, F.pad(pixels, (0, missing[1], 0, missing[0]))).float()
        return best_synonym(clip.similarity(feature, text), words)[:, :-1].softmax(-1)

    def losses(self, views: Views, words: Vocabulary) -> dict[str, Tensor]:
        """Return the cross-entropy of all labelled pixels with the training words, ``loss_sem_seg``."""
        text = self.clip_adapter.text_matrix(words.texts, words.templates)
        logits = self.clip_adapter.similarity(self.embed(views).permute(0, 2, 3, 1), text)
        logits = best_synonym(logits, words)[..., :-1].permute(0, 3, 1, 2)  # (B, K, h, w)
        logits = F.interpolate(logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        truth = logits.new_full((len(logits), *logits.shape[2:]), self.ignore_label, dtype=torch.long)
        for row, request in zip(truth, views.requests, strict=True):
            labels = label_map(request, self.ignore_label).to(row.device)
            row[: labels.shape[0], : labels.shape[1]] = labels
        return {"loss_sem_seg": F.cross_entropy(logits, truth, ignore_index=self.ignore_label)}


def label_map(request: Mapping[str, Any], ignore_label: int) -> Tensor:
    """Return the labels of a training request, int64 (H, W): its ``sem_seg``, or the classes of its ``instances``."""
    if "sem_seg" in request:
        return request["sem_seg"].long()
    instances = request["instances"]
    labels = torch.full(instances.image_size, ignore_label)
    for mask, value in zip(
        getattr(instances.gt_masks, "tensor", instances.gt_masks), instances.gt_classes, strict=True
    ):
        labels[mask] = value
    return labels


@META_ARCH_REGISTRY.register()
def SimBaselinePerPixel(cfg: CfgNode) -> PerPixel:
    """Return the model; :class:`PerPixel` documents its inputs and outputs.

    ``CLIP_ENSEMBLE_WEIGHT`` means the same as in :func:`SimBaseline`; above 1, and with ``CLIP_ENSEMBLE`` False, CLIP
    is not used.
    """
    check_model(cfg, with_head=False)
    check_prompts(cfg)
    if cfg.MODEL.SEM_SEG_HEAD.NAME != HEAD:
        raise OvsegError(f"MODEL.SEM_SEG_HEAD.NAME is {shown(cfg.MODEL.SEM_SEG_HEAD.NAME)}: set it to {HEAD}")
    check_kind(cfg, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME")
    clip_adapter = text_adapter(cfg)
    QueryEmbedding.from_config(cfg, clip_adapter)  # the dimensions agree
    backbone = checked_backbone(cfg)
    fuse = SeenUnseenMean.from_config(cfg)
    scorer = PixelEmbeddings(
        backbone=backbone,
        sem_seg_head=build_sem_seg_head(cfg, backbone.output_shape()),
        clip_adapter=clip_adapter,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        fuse=fuse,
        ensemble=cfg.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE,
    )
    model = PerPixel(scorer=scorer, **request_arguments(cfg))
    model.fuse = fuse  # for settings of single data sets
    return model


@META_ARCH_REGISTRY.register()
def ZeroShotPerPixelModel(cfg: CfgNode) -> PerPixel:
    """Return :func:`SimBaselinePerPixel`, by its name in the original's configurations."""
    return SimBaselinePerPixel(cfg)
