"""Head of ZegFormer: MaskFormer's, with one linear layer to CLIP's joint space and a learnt background.

Ding et al., "Decoupling Zero-Shot Semantic Segmentation", CVPR 2022, arXiv 2112.07910; specification, section 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ovseg.proposals.maskformer import MaskPredictor, OpenVocabMaskFormerHead, predictor_arguments


class ZegFormerPredictor(MaskPredictor):
    """:class:`MaskPredictor` whose queries are compared with texts and a background vector at a fixed temperature.

    ZegFormer's published checkpoints of evaluation have CLIP below this module, as ``clip_model``.

    Args:
        embedding_dim: dimension D of the joint space.
        temperature: logits are cosines divided by it.
        predictor: the arguments of :class:`MaskPredictor`.
    """

    def __init__(self, *, embedding_dim: int, temperature: float = 0.01, **predictor):
        super().__init__(**predictor)
        self.projection_layer = nn.Linear(predictor["hidden_dim"], embedding_dim)
        self.bg_feature = nn.Parameter(torch.empty(1, embedding_dim))
        nn.init.kaiming_uniform_(self.bg_feature, a=math.sqrt(5))
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]), requires_grad=False)

    def embed(self, x: Tensor) -> Tensor:
        return self.projection_layer(x)

    def class_logits(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Return logits of texts, the background ("no object") last.

        Args:
            embeddings: (..., D), not normalised.
            text: (S, D) unit vectors.

        Returns:
            (..., S + 1). The background vector is not normalised: its logit is no cosine.
        """
        unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * unit @ torch.cat((text, self.bg_feature)).T


@SEM_SEG_HEADS_REGISTRY.register()
class ZegFormerHead(OpenVocabMaskFormerHead):
    """MaskFormer's head with :class:`ZegFormerPredictor`."""

    @classmethod
    def build_predictor(cls, cfg: CfgNode, **arguments: Any) -> MaskPredictor:
        unused = ("embed_hidden_dim", "embed_layers")
        own = {name: value for name, value in predictor_arguments(cfg).items() if name not in unused}
        return ZegFormerPredictor(temperature=cfg.MODEL.SEM_SEG_HEAD.TEMPERATURE, **arguments, **own)
