"""``GroupEmbeddings``: the namer of groups of patches by text embeddings of a joint space (OVSegmentor, section 8).

::

    group features (K, D) --> img_projector ----> (K, d) --+
    mean of them (D) -------> img_projector ----> (d) ------+--> score of each word for each group (K, C)
    prompts -> text encoder -> text_projector --> (C, d) ---+
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.bert import TextEncoder
from ovseg.errors import OvsegError, shown
from ovseg.grounding import best_word
from ovseg.grounding.batch_norm import SharedBatchNorm
from ovseg.proposals.views import Part
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.templates import OVSEGMENTOR, check_templates, get_templates

LARGEST_SCALE = 100.0  # of the cosines
PROMPTS_AT_A_TIME = 256


class ProjectionHead(nn.Module):
    """Two layers with batch normalisation, for vectors or sequences of vectors (specification, section 4).

    Its layers are convolutions of width 1, as in published checkpoints.
    """

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, shared: bool = True):
        super().__init__()
        norm = (SharedBatchNorm if shared else nn.BatchNorm1d)(hidden_dim)
        self.linear_hidden = nn.Sequential(nn.Conv1d(dim, hidden_dim, 1), norm, nn.ReLU(inplace=True))
        self.linear_out = nn.Conv1d(hidden_dim, out_dim, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the projections (B, out_dim) of (B, dim), or (B, L, out_dim) of (B, L, dim).

        In training, the statistics are those of all B L vectors, if ``shared`` of all processes.
        """
        sequences = vectors[:, None] if vectors.dim() == 2 else vectors
        projected = self.linear_out(self.linear_hidden(sequences.transpose(1, 2))).transpose(1, 2)
        return projected[:, 0] if vectors.dim() == 2 else projected


def projection_heads(
    num_layers: int, image: int, text: int, hidden: int, out: int, shared: bool = True
) -> tuple[nn.Module, nn.Module]:
    """Return the heads of images and of texts.

    Args:
        num_layers: 2; 0 for none; -1 for one linear layer from images to the text encoder's channels.
        image, text: channels of both encoders.
        hidden, out: channels of the hidden layer, and of the joint space.
        shared: whether processes share the statistics of the batch normalisation.
    """
    if num_layers == 2:
        return ProjectionHead(image, hidden, out, shared), ProjectionHead(text, hidden, out, shared)
    if num_layers == 0 and image != text:
        raise OvsegError(
            f"MODEL.OVSEGMENTOR.PROJ_NUM_LAYERS is 0, but images have {image} channels and texts {text}: set it to 2"
        )
    return (nn.Linear(image, text) if num_layers == -1 else nn.Identity()), nn.Identity()


def scale_of(logit_scale: Tensor) -> Tensor:
    """Return the factor of cosines, at most :data:`LARGEST_SCALE`, above which its gradient is 0."""
    return logit_scale.exp().clamp(max=LARGEST_SCALE)


def template_set(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return templates by the name of a set, ``simple``, ``subset``, ``full`` or ``identity``; or those given.

    Raises:
        OvsegError: the name is another one, or a template has not one ``{}``.
    """
    if isinstance(templates, str):
        if templates not in (*OVSEGMENTOR, "full"):
            names = ", ".join((*OVSEGMENTOR, "full"))
            raise OvsegError(f"templates is {shown(templates)}: give a list of prompts, or one of {names}")
        return get_templates(templates)
    check_templates(templates, "templates")
    return tuple(templates)


class GroupEmbeddings(Part):
    """Namer of groups by the cosines of their embeddings and those of words.

    Args:
        text_encoder: of prompts.
        img_projector, text_projector: heads of the joint space.
        temperature: of the cosines at the start.
        templates: prompts of words without templates of their own, see :func:`template_set`.
        top_classes: words that one image may show.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        img_projector: nn.Module,
        text_projector: nn.Module,
        temperature: float = 0.07,
        templates: str | Sequence[str] = "simple",
        top_classes: int = 5,
    ):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.text_encoder = text_encoder
        self.img_projector, self.text_projector = img_projector, text_projector
        self.templates, self.top_classes = template_set(templates), top_classes
        self._known: tuple | None = None

    @classmethod
    def from_keys(cls, keys: CfgNode, image_width: int) -> GroupEmbeddings:
        """Return the namer of ``MODEL.OVSEGMENTOR`` for features of ``image_width`` channels."""
        encoder = TextEncoder.from_keys(keys.TEXT_ENCODER)
        sizes = (image_width, encoder.width, keys.PROJ_HIDDEN_DIM, keys.OUTPUT_DIM)
        heads = projection_heads(keys.PROJ_NUM_LAYERS, *sizes)
        return cls(encoder, *heads, keys.CONTRAST_TEMPERATURE, keys.TEMPLATES, keys.TOP_CLASSES)

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines."""
        return scale_of(self.logit_scale)

    def forward(self, features: Tensor, pooled: Tensor, words: Vocabulary, texts: Tensor) -> Tensor:
        """Return the score of each word for each group of an image, float32 (K, C), from 0 to 1.

        It is the product of two probabilities: of the word among all, and of the word among those that the whole image
        may show (specification, 8.2). Synonyms are words of their own; the best one counts.

        Args:
            features: (K, D) of the groups.
            pooled: (D,) of the image.
            words: C words.
            texts: of :meth:`text_matrix`.
        """
        groups = F.normalize(self.img_projector(features), dim=-1)
        image = F.normalize(self.img_projector(pooled[None]), dim=-1)
        scores = gated_scores(self.scale * groups @ texts.T, (self.scale * image @ texts.T)[0], self.top_classes)
        return best_word(scores, torch.tensor(words.classes), len(words))

    def text_matrix(self, words: Vocabulary) -> Tensor:
        """Return unit vectors (S, d) of the S texts of words, in their own prompts or the model's."""
        return self.class_embeddings(words.texts, words.templates)

    def class_embeddings(self, names: Sequence[str], templates: str | Sequence[str] | None = None) -> Tensor:
        """Return a unit vector of each word, (C, d): the mean over templates before it is normalised.

        Args:
            names: C words.
            templates: prompts with ``{}``, or the name of a set; default: those of the model.

        Raises:
            OvsegError: there are no words, or templates are not such ones.
        """
        if not names:
            raise OvsegError("there are no words to embed: give at least one name")
        templates = self.templates if templates is None else template_set(templates)
        key = (tuple(names), templates, self._version())
        if self._known is not None and self._known[0] == key and not self.training and not torch.is_grad_enabled():
            return self._known[1]
        prompts = [template.format(name) for name in names for template in templates]
        ids, mask = (tensor.to(self.logit_scale.device) for tensor in self.text_encoder.tokenizer(prompts))
        vectors = [
            self.text_projector(self.text_encoder(*part)[:, 0])
            for part in zip(ids.split(PROMPTS_AT_A_TIME), mask.split(PROMPTS_AT_A_TIME), strict=True)
        ]
        vectors = torch.cat(vectors).unflatten(0, (len(names), len(templates)))
        embeddings = F.normalize(vectors.mean(dim=1), dim=-1)
        if not torch.is_grad_enabled():
            self._known = (key, embeddings)
        return embeddings

    def _version(self) -> tuple:
        """Return what changes whenever the weights of texts do."""
        tensors = [*self.text_encoder.parameters(), *self.text_projector.state_dict(keep_vars=True).values()]
        return tuple((tensor.data_ptr(), _writes(tensor)) for tensor in tensors)


def gated_scores(logits: Tensor, image_logits: Tensor, top: int) -> Tensor:
    """Return the product of two softmaxes over words: over all, and over the ``top`` words of the image (8.2, 6 to 7).

    Args:
        logits: (K, C) of the groups.
        image_logits: (C,) of the whole image.

    Returns:
        (K, C); 0 for words that the image does not show.
    """
    kept = image_logits.topk(min(top, len(image_logits))).indices
    gated = torch.full_like(logits, -torch.inf).index_copy(1, kept, logits[:, kept])
    return logits.softmax(dim=1) * gated.softmax(dim=1)


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
