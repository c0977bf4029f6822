"""Data that the parts of a model exchange: views of the images, and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isfunction
from typing import Any, TypeVar

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

PROPOSERS = Registry("PROPOSER")
PROPOSERS.__doc__ = """
Proposers by the value of ``MODEL.PROPOSER.NAME``: called with the configuration, each returns a :class:`Part` whose
call takes :class:`Views` and returns one :class:`Masks` per image.
"""
Result = TypeVar("Result")


class Part(nn.Module):
    """A proposer, a namer, or a module that refines their results.

    Parts are composed by :class:`ovseg.meta_arch.propose_and_name.ProposeAndName`, which registers the sub-modules and
    parameters of a part under the names that they have in the part. These are the names in published checkpoints; a
    module that several parts share, such as CLIP, is registered once. A part has no buffers, only its sub-modules may.

    A method that was replaced on a part (:mod:`ovseg.meta_arch.acceleration`) belongs to that part: copies and pickles
    have the method of the class.
    """

    def __getstate__(self) -> dict[str, Any]:
        kind = type(self)
        return {name: value for name, value in self.__dict__.items() if not isfunction(getattr(kind, name, None))}


@dataclass
class Views:
    """A batch of images, and results that several parts share.

    Attributes:
        requests: B dictionaries, see :class:`ovseg.meta_arch.propose_and_name.ProposeAndName`.
        images: B images (3, H, W), float32 RGB, 0 .. 255, on the device of the model.
        divisibility: images are padded to sides that are multiples of this where they are processed as one batch.
    """

    requests: Sequence[Mapping[str, Any]]
    images: Sequence[Tensor]
    divisibility: int = 32
    _results: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the batch: those of its largest images, rounded up to multiples of :attr:`divisibility`.

        Images lie at the top left of the canvas.
        """
        multiple = max(self.divisibility, 1)
        height, width = (max(image.shape[axis] for image in self.images) for axis in (1, 2))
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Return images of the sizes of :attr:`images` on the canvas, with zeros around them; (B, 3, height, width)."""
        height, width = self.canvas
        return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])

    def once(self, key: Any, compute: Callable[[], Result]) -> Result:
        """Return the result of ``compute``, which is called only for the first use of ``key``."""
        if key not in self._results:
            self._results[key] = compute()
        return self._results[key]


@dataclass(frozen=True)
class Masks:
    """The masks that a proposer found in one image.

    Attributes:
        probabilities: float32 (Q, H, W), of the size of the image.
        embeddings: (Q, D), the proposer's own class embedding of each mask, not normalised; None if it has none.
        logits: (Q, h, w), of the size at which a network predicts them, for the whole canvas (:attr:`Views.canvas`);
            None for masks from elsewhere.
        given: bool (Q, *, *), masks from elsewhere in their own size; None for those of a network.
        scores: float32 (Q, K), class probabilities of the masks by an earlier namer, which sum to the probability that
            a mask is an object; None before one has scored them.
    """

    probabilities: Tensor
    embeddings: Tensor | None = None
    logits: Tensor | None = None
    given: Tensor | None = None
    scores: Tensor | None = None
