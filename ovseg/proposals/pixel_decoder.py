"""MaskFormer's pixel decoders: backbone features -> per-pixel mask features at stride 4.

Cheng et al., "Per-Pixel Classification is Not All You Need" (MaskFormer), NeurIPS 2021, arXiv 2107.06278,
section 3.2 and appendix; details from the specification, section 6.3. Mask2Former's is in
:mod:`ovseg.proposals.multi_scale_pixel_decoder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError, shown
from ovseg.proposals.position_encoding import sine_position_encoding
from ovseg.proposals.transformer import Encoder, initialise


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """FPN: from the coarsest map to the finest, lateral 1x1 + nearest upsampling, then 3x3.

    Args:
        input_shape: channels and stride of each input feature.
        conv_dim: channels of all inner maps.
        mask_dim: channels of the result.
        norm: Detectron2's name of the normalisation ("GN"), "" for none.
    """

    @configurable
    def __init__(self, input_shape: Mapping[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: str):
        super().__init__()
        # finest first, as the numbers in the modules' names count: adapter_1, layer_1 ... layer_4
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        coarsest = len(self.in_features)
        for i, name in enumerate(self.in_features, 1):
            channels = input_shape[name].channels
            if i < coarsest:
                self.add_module(f"adapter_{i}", conv(channels, conv_dim, 1, norm, relu=False))
                channels = conv_dim
            self.add_module(f"layer_{i}", self._output_layer(i, coarsest, channels, conv_dim, norm))
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @staticmethod
    def _output_layer(i: int, coarsest: int, channels: int, conv_dim: int, norm: str) -> Conv2d:
        return conv(channels, conv_dim, 3, norm, relu=True)

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": read_features(head.IN_FEATURES, input_shape),
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: the backbone's maps (B, C_i, H / s_i, W / s_i).

        Returns:
            mask features (B, mask_dim, H / 4, W / 4), and what the predictor can read: the transformer encoder's map
            of the coarsest feature (B, conv_dim, h, w); empty without such an encoder.
        """
        *finer, coarsest = self.in_features
        encoded = self.encode(features[coarsest])
        y = getattr(self, f"layer_{len(self.in_features)}")(features[coarsest] if encoded is None else encoded)
        for i in range(len(finer), 0, -1):
            lateral = getattr(self, f"adapter_{i}")(features[finer[i - 1]])
            y = getattr(self, f"layer_{i}")(lateral + F.interpolate(y, lateral.shape[-2:], mode="nearest"))
        return self.mask_features(y), [] if encoded is None else [encoded]

    def encode(self, coarsest: Tensor) -> Tensor | None:
        """Refine the coarsest map (B, C, h, w); None where there is nothing to refine it with."""
        return None


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """:class:`BasePixelDecoder` with a transformer encoder on the coarsest feature.

    Args:
        encoder_layers, heads, feedforward, dropout, pre_norm: of the encoder.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        encoder_layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
        pre_norm: bool,
        conv_dim: int,
        mask_dim: int,
        norm: str,
    ):
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.input_proj = Conv2d(input_shape[self.in_features[-1]].channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.transformer = nn.Module()  # the published key names say "transformer.encoder"
        self.transformer.encoder = Encoder(
            encoder_layers, conv_dim, pre_norm, heads=heads, feedforward=feedforward, dropout=dropout
        )
        initialise(self.transformer)

    @staticmethod
    def _output_layer(i: int, coarsest: int, channels: int, conv_dim: int, norm: str) -> Conv2d:
        return conv(conv_dim if i == coarsest else channels, conv_dim, 3, norm, relu=True)

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        former = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "encoder_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "heads": former.NHEADS,
            "feedforward": former.DIM_FEEDFORWARD,
            "dropout": former.DROPOUT,
            "pre_norm": former.PRE_NORM,
        }

    def encode(self, coarsest: Tensor) -> Tensor:
        x = self.input_proj(coarsest)
        position = sine_position_encoding(*x.shape[-2:], x.shape[1], x.device)
        y = self.transformer.encoder(x.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(x.shape)


def conv(in_channels: int, out_channels: int, kernel: int, norm: str, relu: bool) -> Conv2d:
    """Convolution that keeps the size, with a normalisation instead of a bias (bias where ``norm`` is "").

    Raises:
        OvsegError: Detectron2 has no such normalisation.
    """
    try:
        normalisation = get_norm(norm, out_channels)
    except KeyError as error:
        raise OvsegError(
            f"MODEL.SEM_SEG_HEAD.NORM is {shown(norm)}: give a normalisation of Detectron2, such as GN, or '' for none"
        ) from error
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=normalisation,
        activation=F.relu if relu else None,
    )
    weight_init.c2_xavier_fill(layer)
    return layer


def read_features(names: Sequence[str], offered: Mapping[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """Return the features of the backbone that a decoder reads.

    Raises:
        OvsegError: none, or one that the backbone does not give.
    """
    if not names or set(names) - set(offered):
        raise OvsegError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {shown(names)}: choose among {', '.join(offered)}")
    return {name: offered[name] for name in names}
