"""The words of a request, flattened for CLIP: a class may have several names (synonyms)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ovseg.data.catalog import register_on_demand
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Words:
    """K classes with S >= K names in all.

    Attributes:
        names: the S names, verbatim.
        classes: the class of each name, ascending.
        templates: prompts around the names; None for the model's own.
    """

    names: tuple[str, ...]
    classes: tuple[int, ...]
    templates: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.classes[-1] + 1

    def with_others(self) -> Words:
        """The same and one more class, named "others"."""
        return replace(self, names=(*self.names, "others"), classes=(*self.classes, len(self)))

    def reduce(self, logits: Tensor) -> Tensor:
        """Best name of each class; (..., S + 1) with no-object last -> (..., K + 1)."""
        if len(self.names) == len(self):
            return logits
        index = torch.tensor((*self.classes, len(self)), device=logits.device).expand(logits.shape)
        reduced = logits.new_full((*logits.shape[:-1], len(self) + 1), -torch.inf)
        return reduced.scatter_reduce(-1, index, logits, "amax")


def requested_words(request: Mapping[str, Any], datasets: Sequence[str] = ()) -> Words:
    """The words of one entry of a batch: its ``class_names``, else its data set's ``stuff_classes``, stripped.

    ``templates``, if given, are the prompts that they are put into.

    Args:
        request: the entry.
        datasets: of the configuration; Detectron2's own predictor and loaders name neither words nor a data set, and
            get the words of the first of these.

    Raises:
        OvsegError: there are none.
    """
    if "class_names" in request:
        return _flatten(request["class_names"], "class_names", request.get("templates"))
    dataset = request.get("meta", {}).get("dataset_name") or _first(tuple(datasets))
    names = _words_of(dataset)
    if not names:
        raise OvsegError(f"the data set {dataset} has no stuff_classes in its metadata: set them when registering it")
    return _flatten([name.strip() for name in names], f"stuff_classes of {dataset}", request.get("templates"))


@functools.cache
def _first(datasets: tuple[str, ...]) -> str:
    if not datasets:
        raise OvsegError(
            'give the words to look for: "class_names" or "meta": {"dataset_name": ...} in each request, or a data set '
            "in DATASETS.TEST of the configuration (DATASETS.TRAIN for training)"
        )
    if any(_words_of(other) != _words_of(datasets[0]) for other in datasets[1:]):
        logger.warning(
            "data sets of DATASETS.TEST differ in words, and requests that name none get those of %s: put "
            '"meta": {"dataset_name": ...} into requests for others',
            datasets[0],
        )
    return datasets[0]


def _words_of(dataset: str) -> Sequence[str] | None:
    register_on_demand(dataset)
    return MetadataCatalog.get(dataset).get("stuff_classes")


def _flatten(class_names: Sequence[str | Sequence[str]], source: str, templates: Sequence[str] | None = None) -> Words:
    if isinstance(class_names, str):
        raise OvsegError(f"{source} must be a list of words, not the text {class_names!r}")
    groups = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in class_names]
    if not groups:
        raise OvsegError(f"{source} is empty: give at least one word")
    for group in groups:
        if not group or any(not isinstance(name, str) or not name.strip() for name in group):
            raise OvsegError(f"{source} has a blank word: remove it")
    return Words(
        tuple(name for group in groups for name in group),
        tuple(i for i, group in enumerate(groups) for _ in group),
        None if templates is None else tuple(templates),
    )
