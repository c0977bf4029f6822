"""``RegionQueries``: the class-agnostic proposer of OpenSeg (Ghiasi et al., ECCV 2022, arXiv 2112.12143).

Section 3.1 and appendix C of the paper::

    image -> backbone -> pyramid -> F -> mask branch -> (+) position -> F_s ----------------+-> masks sigmoid(q . F_s)
                                                                         |                  |
    learnt queries (N, D) -----------------------------------------> 3 x (cross-attention, feed-forward) -> q (N, D)

There is no matching and no "no object": each labelled mask only asks the mask that covers it best to cover it better,
and all other masks are free (:mod:`ovseg.proposals.class_agnostic`). They may overlap.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.proposals.class_agnostic import best_match_dice_loss
from ovseg.proposals.fpn import FusedTrunk, PixelBranch
from ovseg.proposals.transformer import CrossAttention, FeedForward, SelfAttention
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views

STRIDE = 4  # of the fused map


class PositionTable(nn.Module):
    """Learnt absolute positions of a square map, resized bilinearly for maps of other sizes.

    Args:
        dim: channels D.
        side: of the map of the training.
        form: "full", a vector for each place; or "separable", the sum of one for its row and one for its column.
    """

    def __init__(self, dim: int, side: int, form: str = "full"):
        super().__init__()
        shapes = {
            "full": {"table": (dim, side, side)},
            "separable": {"rows": (dim, side, 1), "columns": (dim, 1, side)},
        }
        for name, shape in shapes[form].items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape).normal_(std=0.02)))

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Return the positions of a map of this height and width, (D, h, w)."""
        table = sum(self.parameters())
        if table.shape[1:] == size:
            return table
        return F.interpolate(table[None], size, mode="bilinear", align_corners=False)[0]


class QueryBlock(nn.Module):
    """Pre-norm block of queries that attend to the image: cross-attention, feed-forward (appendix C of the paper).

    Args:
        dim, heads, feedforward: sizes.
        self_attention: let queries attend to each other first; the paper found no gain.
    """

    def __init__(self, dim: int, heads: int, feedforward: int, self_attention: bool = False):
        super().__init__()
        self.among = SelfAttention(dim, heads, 0.0, pre_norm=True) if self_attention else None
        self.cross = CrossAttention(dim, heads, 0.0, pre_norm=True)
        self.feedforward = FeedForward(dim, feedforward, 0.0, pre_norm=True)

    def forward(self, queries: Tensor, places: Tensor, allowed: Tensor | None) -> Tensor:
        """Return updated queries; (B, N, D), (B, places, D) -> (B, N, D)."""
        if self.among is not None:
            queries = self.among(queries)
        return self.feedforward(self.cross(queries, places, allowed=allowed))


@PROPOSERS.register()
class RegionQueries(Part):
    """Proposer of OpenSeg, see the module.

    Args:
        trunk: backbone and fused pyramid, which pads images to the canvas.
        dim: channels D of the pyramid.
        num_proposals: N.
        num_blocks, num_heads, feedforward, self_attention: of the blocks, see :class:`QueryBlock`.
        position: form of the :class:`PositionTable`.
        canvas: side of the square that images are padded to, pixels; larger ones are scaled down to it.
        logit_scale: factor of the mask logits; negative for 1 / sqrt(D), which keeps the masks from saturating.
        dice_form: see :func:`ovseg.proposals.class_agnostic.dice`.
        loss_weight: of the loss.
        norm: Detectron2's name of the branch's normalisation.

    Raises:
        OvsegError: the canvas is no multiple of the trunk's strides, or ``num_heads`` does not divide D.
    """

    gives_embeddings: ClassVar[bool] = False

    @configurable
    def __init__(
        self,
        trunk: FusedTrunk,
        *,
        dim: int,
        num_proposals: int = 128,
        num_blocks: int = 3,
        num_heads: int = 8,
        feedforward: int = 2048,
        self_attention: bool = False,
        position: str = "full",
        canvas: int = 640,
        logit_scale: float = -1.0,
        dice_form: str = "vnet",
        loss_weight: float = 1.0,
        norm: str = "GN",
    ):
        super().__init__()
        if canvas % trunk.size_divisibility:
            raise OvsegError(
                f"MODEL.OPENSEG.CANVAS is {canvas}: give a multiple of {trunk.size_divisibility}, the backbone's stride"
            )
        if dim % num_heads:
            raise OvsegError(f"MODEL.OPENSEG.NUM_HEADS is {num_heads}: give a divisor of HEAD_DIM, which is {dim}")
        trunk.size_divisibility = canvas
        self.trunk = trunk
        self.mask_branch = PixelBranch(dim, dim, norm)
        self.position = PositionTable(dim, canvas // STRIDE, position)
        self.queries = nn.Parameter(torch.randn(num_proposals, dim))
        self.blocks = nn.ModuleList(QueryBlock(dim, num_heads, feedforward, self_attention) for _ in range(num_blocks))
        self.query_norm = nn.LayerNorm(dim)
        self.logit_scale = dim**-0.5 if logit_scale < 0 else logit_scale
        self.dice_form, self.loss_weight = dice_form, loss_weight
        self.size_divisibility = self.largest_side = canvas

    @classmethod
    def from_config(cls, cfg: CfgNode, trunk: FusedTrunk | None = None) -> dict[str, Any]:
        own = cfg.MODEL.OPENSEG
        return {
            "trunk": trunk or FusedTrunk.from_config(cfg, own.HEAD_DIM, own.NORM),
            "dim": own.HEAD_DIM,
            "num_proposals": own.NUM_PROPOSALS,
            "num_blocks": own.NUM_BLOCKS,
            "num_heads": own.NUM_HEADS,
            "feedforward": own.FFN_DIM,
            "self_attention": own.SELF_ATTN,
            "position": own.POS_EMBED,
            "canvas": own.CANVAS,
            "logit_scale": own.MASK_LOGIT_SCALE,
            "dice_form": own.DICE_FORM,
            "loss_weight": own.SEG_LOSS_WEIGHT,
            "norm": own.NORM,
        }

    @property
    def num_proposals(self) -> int:
        """Number N of masks of an image."""
        return len(self.queries)

    def forward(self, views: Views) -> list[Masks]:
        """Return the masks of each image, in evaluation mode."""
        found = []
        for image, logits in zip(views.images, self.mask_logits(views), strict=True):
            enlarged = F.interpolate(logits[None].float(), views.canvas, mode="bilinear", align_corners=False)[0]
            cropped = enlarged[:, : image.shape[1], : image.shape[2]].contiguous()
            found.append(Masks(cropped.sigmoid_(), logits=logits))
        return found

    def mask_logits(self, views: Views) -> Tensor:
        """Return the logits (B, N, h, w) of the masks of a batch at stride 4; computed once for all parts."""
        return views.once(("mask logits", id(self)), lambda: self._mask_logits(views))

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Compute the loss of the masks against the ``gt_masks`` of the requests' ``instances``, if they have any."""
        logits = self.mask_logits(views)
        if self.loss_weight == 0:
            return {"loss_segmentation": 0 * logits.sum()}
        labels = [
            self._labels(request, views.images[i].shape, views.canvas) for i, request in enumerate(views.requests)
        ]
        loss = best_match_dice_loss(logits.float(), labels, self.trunk.valid(views), self.dice_form)
        return {"loss_segmentation": self.loss_weight * loss}

    def _mask_logits(self, views: Views) -> Tensor:
        valid = self.trunk.valid(views)
        return self.decode(self.trunk(views), None if valid.all() else valid)

    def decode(self, fused: Tensor, valid: Tensor | None) -> Tensor:
        """Return the logits (B, N, h, w) of the masks.

        Args:
            fused: the map of the trunk, (B, D, h, w).
            valid: bool (B, h, w), places that queries attend to; None for all.
        """
        features = self.mask_branch(fused)
        features = features + self.position(features.shape[-2:])
        places = features.flatten(2).transpose(1, 2)
        allowed = None if valid is None else valid.flatten(1)[:, None]  # (B, 1, places)
        queries = self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            queries = block(queries, places, allowed)
        return torch.einsum("bnd,bdhw->bnhw", self.query_norm(queries), features) * self.logit_scale

    def _labels(self, request: dict[str, Any], size: torch.Size, canvas: tuple[int, int]) -> Tensor:
        """Return the labelled masks of an image on the grid of the mask logits, bool (M, h, w), each with a place."""
        grid = canvas[0] // STRIDE, canvas[1] // STRIDE
        if "instances" not in request:
            raise OvsegError(
                "a training sample has no instances: map data sets with ovseg.data.caption_mapper.CaptionMapper, which "
                "gives images without masks an empty one"
            )
        masks = request["instances"].gt_masks
        masks = getattr(masks, "tensor", masks).to(self.queries.device)
        if not len(masks):
            return masks.new_zeros(0, *grid, dtype=torch.bool)
        if masks.shape[-2:] != (there := request["image"].shape[-2:]):
            raise OvsegError(
                f"the masks of {request.get('file_name', 'a training sample')} have {list(masks.shape[-2:])} pixels "
                f"but its image {list(there)}: both must be of one size"
            )
        if there != size[-2:]:  # the image was larger than the canvas
            masks = F.interpolate(masks[None].float(), size[-2:], mode="nearest-exact")[0]
        padded = F.pad(masks.float(), (0, canvas[1] - size[-1], 0, canvas[0] - size[-2]))
        small = F.interpolate(padded[None], grid, mode="nearest-exact")[0] > 0
        return small[small.flatten(1).any(1)]
