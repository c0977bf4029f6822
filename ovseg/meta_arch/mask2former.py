"""``Mask2Former``: proposals with a closed vocabulary of their own (Cheng et al., CVPR 2022, arXiv 2112.01527).

The proposal network of SCAN without CLIP and words. The head is the same, ``OpenVocaMask2FormerHead``; its
class embedding is read as the logits of the training classes and "no object", so ``MODEL.SEM_SEG_HEAD.EMBEDDING_DIM``
is ``NUM_CLASSES + 1``, and with ``EMBED_LAYERS: 1`` the classifier is a linear layer, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ovseg.errors import OvsegError
from ovseg.meta_arch.pixel_scores import MaskSum
from ovseg.meta_arch.propose_and_name import ProposeAndName, check_model
from ovseg.naming import Scores, SingleNamer
from ovseg.proposals.network import MaskNetwork
from ovseg.proposals.views import Masks, Part, Views
from ovseg.vocabulary import Vocabulary


@META_ARCH_REGISTRY.register()
def Mask2Former(cfg: CfgNode) -> ProposeAndName:
    """Return the model, which segments into the classes of its training set.

    :class:`ProposeAndName` documents its inputs and outputs. A request may omit words; if it has words, their number
    must be the number of classes.
    """
    check_model(cfg)
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.EMBEDDING_DIM != head.NUM_CLASSES + 1:
        raise OvsegError(
            f"MODEL.SEM_SEG_HEAD.EMBEDDING_DIM is {head.EMBEDDING_DIM}: in Mask2Former it must be NUM_CLASSES + 1 "
            f"(one logit per class and one for no object), set it to {head.NUM_CLASSES + 1}"
        )
    classes = Vocabulary.from_class_names([str(index) for index in range(head.NUM_CLASSES)])
    return ProposeAndName(
        proposer=MaskNetwork(cfg),
        namers=[ClassLogits(head.NUM_CLASSES)],
        fuse=SingleNamer(),
        render=MaskSum.from_config(cfg),
        closed_vocabulary=classes,
    )


Mask2Former.takes_words = False  # read by ovseg.config.limits.check_inference before it is built


class ClassLogits(Part):
    """Namer that interprets embeddings (Q, K + 1) as the logits of K classes and "no object".

    Args:
        num_classes: K.
    """

    explains: ClassVar[str] = "own"

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, views: Views, masks: Sequence[Masks], words: Sequence[Vocabulary | None]) -> list[Scores | None]:
        """Return the scores of each image."""
        return [
            None if vocabulary is None else Scores(found.embeddings.softmax(-1)[..., :-1])
            for found, vocabulary in zip(masks, words, strict=True)
        ]

    def class_logits(self, vocabulary: Vocabulary) -> Callable[[Tensor], Tensor]:
        """Return the identity: the embeddings are the logits."""
        return lambda embeddings: embeddings
