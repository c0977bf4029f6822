"""``PerPixel``: the model without proposals, which scores each word for each place of a dense map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ovseg.errors import OvsegError
from ovseg.meta_arch.mask_sums import resize, resized_labels
from ovseg.meta_arch.word_model import WordModel, output_size, outputs_of
from ovseg.proposals.views import Part


class PerPixel(WordModel):
    """Model that segments images by scoring each word for each pixel.

    ::

        image -> scorer -> scores (K, h, w) -> resize -> pixels
        words ---^

    Input and output: see :class:`WordModel`; there are no masks, hence no ``proposals`` and no ``explanations``. In
    training a request also has ``sem_seg``, labels int64 (H, W).

    Args:
        scorer: called with the views and the vocabulary of each image, it returns scores float32 (K, h, w) of the
            whole image, any h and w, for each. To train, it has ``losses(views, vocabulary)``, or ``losses(views)``
            and the attribute ``learns_from`` "captions" if what it learns has other words. Its attribute
            ``scores_are_independent`` (default False) says that the score of a word does not depend on the other words.
        class_chunk_size: number of classes resized at a time, which limits memory and does not change results.
        model: the remaining arguments of :class:`WordModel`.
    """

    def __init__(self, *, scorer: Part, class_chunk_size: int = 64, **model: Any):
        super().__init__((scorer,), **model)
        self.class_chunk_size = class_chunk_size

    @property
    def scorer(self) -> Part:
        return self.parts[0]

    @property
    def scores_are_independent(self) -> bool:
        """Whether the score of a word does not depend on the other words, as a cosine; the scorer says so."""
        return getattr(self.scorer, "scores_are_independent", False)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Segment images, or compute the losses in training mode; the class documents inputs and outputs."""
        views = self.views(batched_inputs)
        if self.training:
            if not hasattr(self.scorer, "losses"):
                raise OvsegError(f"{type(self.scorer).__name__} has nothing to train: use train_net.py --eval-only")
            if getattr(self.scorer, "learns_from", "classes") == "captions":
                return self.scorer.losses(views)
            return self.scorer.losses(views, self.training_words(views))
        for request in views.requests:
            if self.granularity_of(request) is not None:
                raise OvsegError(
                    "granularity selects masks, and this model has none: leave it out, or use a system with a proposer"
                )
            if absent := outputs_of(request) - {"sem_seg", "label_map"}:
                raise OvsegError(
                    f"this model has no masks, hence no {' and '.join(sorted(absent))}: use a system with a proposer"
                )
        words = [self.words_of(request) for request in views.requests]
        scores = self.scorer(views, words)
        return [self._answer(*of_image) for of_image in zip(views.requests, words, scores, strict=True)]

    def _answer(self, request: Mapping[str, Any], words: Any, scores: Tensor) -> dict[str, Any]:
        """Return the outputs of a request for one image."""
        size, outputs = output_size(request), outputs_of(request)
        if (bias := self.bias_of(request, words)) is not None:
            scores = scores - bias[:, None, None]
        result: dict[str, Any] = {}
        if "sem_seg" in outputs:
            result["sem_seg"] = resize(scores, size)
        if "label_map" in outputs:
            result["label_map"], result["score_map"] = resized_labels(scores, size, self.class_chunk_size)
        return result
