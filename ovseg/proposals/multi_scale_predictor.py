"""Queries -> mask and class embeddings, by masked attention to maps of several scales in turn.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (Mask2Former), CVPR 2022,
arXiv 2112.01527, section 3.2; the open class head and the number of layers are SCAN's (specification, section 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.proposals.multi_scale_pixel_decoder import LEVELS
from ovseg.proposals.position_encoding import sine_position_encoding
from ovseg.proposals.predictor import MLP, input_projection, mask_logits
from ovseg.proposals.transformer import CrossAttention, FeedForward, SelfAttention, initialise

resize = partial(F.interpolate, mode="bilinear", align_corners=False)


class MultiScalePredictor(nn.Module):
    """Each layer attends to one map, inside of the masks predicted so far.

    Args:
        in_channels: channels of the maps.
        hidden_dim: width C of the transformer.
        num_queries: Q.
        embedding_dim, embed_hidden_dim, embed_layers: of the class embedding's MLP.
        mask_dim: channels of the mask features.
        enforce_input_proj: project the maps even where their channels already match.
        decoder_layers: how many there are; Mask2Former's own code has one less than its configuration says.
        heads, feedforward, pre_norm: of every layer. There is no dropout.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_dim: int,
        num_queries: int,
        embedding_dim: int,
        embed_hidden_dim: int,
        embed_layers: int,
        mask_dim: int,
        enforce_input_proj: bool,
        decoder_layers: int,
        heads: int,
        feedforward: int,
        pre_norm: bool,
    ):
        super().__init__()
        layer = {"dropout": 0.0, "pre_norm": pre_norm}
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttention(hidden_dim, heads, **layer) for _ in range(decoder_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(hidden_dim, heads, **layer) for _ in range(decoder_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForward(hidden_dim, feedforward, **layer) for _ in range(decoder_layers)
        )
        initialise(self)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(
            input_projection(in_channels, hidden_dim, enforce_input_proj) for _ in range(LEVELS)
        )
        self.class_embed = MLP(hidden_dim, embed_hidden_dim, embedding_dim, embed_layers)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predict from the queries alone and after every layer, the last one last; in evaluation mode only that one.

        Args:
            maps: three of (B, in_channels, h_l, w_l), coarsest first.
            mask_features: (B, mask_dim, H / 4, W / 4).

        Returns:
            Per prediction the class embeddings (B, Q, embedding_dim), not normalised, and the mask logits
            (B, Q, H / 4, W / 4).
        """
        projected = [projection(x) for projection, x in zip(self.input_proj, maps, strict=True)]
        positions = [
            sine_position_encoding(*x.shape[-2:], x.shape[1], x.device).flatten(2).transpose(1, 2) for x in projected
        ]
        memories = [
            x.flatten(2).transpose(1, 2) + embedding
            for x, embedding in zip(projected, self.level_embed.weight, strict=True)
        ]  # (B, h*w, C) each
        # enlarging is linear, so masks of reduced features are reduced masks: much less work where no one asks for
        # the masks themselves
        reduced = [resize(mask_features, x.shape[-2:]) for x in maps] if not self.training else None

        x = self.query_feat.weight[None].expand(len(mask_features), -1, -1)
        query_position = self.query_embed.weight
        predictions = []
        blocks = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, feedforward) in enumerate(blocks):
            level = i % LEVELS
            if reduced is None:
                predictions.append(self._predict(x, mask_features))
                masks = resize(predictions[-1][1].detach(), maps[level].shape[-2:])
            else:
                masks = mask_logits(self.mask_embed(self.decoder_norm(x)), reduced[level])
            x = cross_attention(x, memories[level], positions[level], query_position, inside(masks))
            x = feedforward(self_attention(x, query_position))
        return [*predictions, self._predict(x, mask_features)]

    def _predict(self, x: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.decoder_norm(x)
        return self.class_embed(x), mask_logits(self.mask_embed(x), mask_features)


def inside(logits: Tensor) -> Tensor:
    """Where masked attention may look: bool (B, Q, h*w) from mask logits (B, Q, h, w); everywhere for empty masks."""
    allowed = logits.flatten(2) >= 0
    return allowed | ~allowed.any(-1, keepdim=True)
