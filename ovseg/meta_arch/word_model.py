"""``WordModel``: what all models of this package share, from the requests of a batch to their words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint.state_dicts import constant_names
from ovseg.data.requested_words import requested_words, seen_classes
from ovseg.errors import OvsegError, shown
from ovseg.io.devices import to_device
from ovseg.proposals.views import Part, Views
from ovseg.vocabulary import Vocabulary

OUTPUTS = ("sem_seg", "label_map", "proposals", "soft_proposals", "explanations", "scored_masks")


class WordModel(nn.Module):
    """Base class of models that segment images into the words of requests.

    Input: a list of dicts, one per image:

    * ``image``: (3, H, W) RGB, 0 .. 255, any dtype; ``height``, ``width``: size of the result (default: H, W)
    * the words: ``class_names``, a :class:`ovseg.vocabulary.Vocabulary` or K entries, each a str or a sequence of
      synonyms; or ``meta["dataset_name"]``; default: the words of the configuration's first data set
    * ``templates``: prompts for the words, in place of the model's own
    * ``seen``: K bool, which of the words the model was trained with, see
      :func:`ovseg.data.requested_words.seen_classes`; only some fusions distinguish them
    * ``add_others``, ``granularity``: see the arguments, which they override
    * ``outputs``: what to return, a subset of :data:`OUTPUTS`; default the first, ``("sem_seg",)``

    Output in evaluation mode: a list of dicts with

    * ``sem_seg``: float32 (K, height, width) scores, not probabilities
    * for ``label_map``: ``label_map`` int64 (height, width), the argmax of ``sem_seg``, and ``score_map`` float32,
      its maximum; needs much less memory than ``sem_seg``
    * the outputs of the child class

    Output in training mode: a dict of losses.

    Args:
        parts: of the model; their modules and parameters are registered under the names that they have in the part.
        add_others: segment a single word against a second one, "others".
        granularity: number from 0 to 1 that replaces the model's own rendering of masks, with None, by
            :class:`ovseg.meta_arch.pixel_scores.ClassWinner`, with "others" for a single word.
        closed_vocabulary: the classes of a model that takes no words; None for an open vocabulary.
        seen_by_default: whether words of which nothing is known count as those of the training.
        seen_bias: number that is subtracted from the scores of the words of the training (calibrated stacking).
        test_sets, train_sets: data sets whose words are the default of requests in evaluation, and in training.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        add_others: bool = False,
        granularity: float | None = None,
        closed_vocabulary: Vocabulary | None = None,
        seen_by_default: bool = False,
        seen_bias: float = 0.0,
        test_sets: Sequence[str] = (),
        train_sets: Sequence[str] = (),
    ):
        super().__init__()
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # holds the device of the model
        self.loadable: dict[
            str, nn.Module
        ] = {}  # by prefix: modules without a place in the state, which files may have
        self.parts = tuple(parts)  # a tuple, which nn.Module does not register: see Part
        for part in self.parts:
            _register(self, part)
        self.closed_vocabulary = closed_vocabulary
        self.add_others, self.granularity = add_others, granularity
        self.seen_by_default, self.seen_bias = seen_by_default, seen_bias
        self.test_sets, self.train_sets = tuple(test_sets), tuple(train_sets)

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def views(self, requests: Sequence[Mapping[str, Any]]) -> Views:
        """Return the images of requests on the device of the model, no larger than the first part takes them."""
        first = self.parts[0]
        images = [to_device(request["image"], self.device).float() for request in requests]
        if largest := getattr(first, "largest_side", None):
            images = [_at_most(image, largest) for image in images]
        return Views(requests, images, getattr(first, "size_divisibility", 32))

    def words_of(self, request: Mapping[str, Any]) -> Vocabulary:
        """Return the words of a request, with "others" if :attr:`add_others` applies to them."""
        words = request.get("class_names")
        if self.closed_vocabulary is not None:
            return self._closed_words(request)
        if not isinstance(words, Vocabulary) or request.get("templates") is not None:
            words = requested_words(request, self.test_sets)
        default = self.add_others or self.granularity_of(request) is not None
        alone = len(words) == 1 and request.get("add_others", default)
        return words.with_others() if alone else words

    def granularity_of(self, request: Mapping[str, Any]) -> float | None:
        """Return the granularity of a request, None for the model's own rendering.

        Raises:
            OvsegError: it is not a number from 0 to 1.
        """
        granularity = request.get("granularity", self.granularity)
        if granularity is not None and not (isinstance(granularity, (int, float)) and 0 <= granularity <= 1):
            raise OvsegError(f"granularity is {shown(granularity)}: give a number from 0 (coarse) to 1 (precise)")
        return granularity

    def seen_of(self, request: Mapping[str, Any], words: Vocabulary) -> Tensor:
        """Return which of the words of a request are words of the training, bool (K,)."""
        return to_device(seen_classes(request, words, self.seen_by_default), self.device)

    def bias_of(self, request: Mapping[str, Any], words: Vocabulary) -> Tensor | None:
        """Return what is subtracted from the scores of each word, float32 (K,); None for nothing."""
        seen = self.seen_of(request, words)  # a wrong ``seen`` is an error also where it changes nothing
        return seen.float() * self.seen_bias if self.seen_bias else None

    def training_words(self, views: Views) -> Vocabulary:
        """Return the words of a training batch, which all of its images share."""
        if self.closed_vocabulary is not None:
            words = {self._closed_words(request) for request in views.requests}
        else:
            words = {requested_words(request, self.train_sets) for request in views.requests}
        if len(words) > 1:
            raise OvsegError("the images of one training batch must share their words: train on one data set at a time")
        return words.pop()

    def train(self, mode: bool = True) -> WordModel:
        """Set the mode of the model and its parts."""
        super().train(mode)
        for part in self.parts:
            part.train(mode)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state, except for constants that published files contain."""
        constants = constant_names(self)
        kept = {name: tensor for name, tensor in state_dict.items() if name not in constants}
        return super().load_state_dict(kept, strict, assign)

    def _closed_words(self, request: Mapping[str, Any]) -> Vocabulary:
        known = len(self.closed_vocabulary)
        if ("class_names" in request or "meta" in request) and (asked := len(requested_words(request))) != known:
            raise OvsegError(
                f"this model has the {known} classes of its training and takes no other words, but {asked} were given: "
                "use OVSeg or SCAN for open vocabularies"
            )
        return self.closed_vocabulary


def output_size(request: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the result; default: those of the image."""
    height, width = request["image"].shape[1:]
    return request.get("height", height), request.get("width", width)


def outputs_of(request: Mapping[str, Any]) -> Collection[str]:
    """Return the names of the outputs of a request.

    Raises:
        OvsegError: one is not of :data:`OUTPUTS`.
    """
    outputs = request.get("outputs", OUTPUTS[:1])
    if isinstance(outputs, str) or not set(OUTPUTS).issuperset(outputs):
        raise OvsegError(f"outputs is {shown(outputs)}: give a list of names out of {', '.join(OUTPUTS)}")
    return set(outputs)


def _at_most(image: Tensor, side: int) -> Tensor:
    """Return an image (3, H, W), scaled down if its longer side has more pixels than ``side``."""
    ratio = side / max(image.shape[1:])
    if ratio >= 1:
        return image
    size = [max(1, round(length * ratio)) for length in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def _register(model: nn.Module, part: Part) -> None:
    """Register the modules and parameters of a part with the model, under the names that they have in the part."""
    for name, parameter in part.named_parameters(recurse=False):
        model.register_parameter(name, parameter)
    for name, module in part.named_children():
        if isinstance(module, Part):
            _register(model, module)
        else:
            model.add_module(name, module)
