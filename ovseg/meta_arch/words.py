"""The words of a request, flattened for CLIP: a class may have several names (synonyms)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ovseg.errors import OvsegError


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


def requested_words(request: Mapping[str, Any]) -> Words:
    """The words of one entry of a batch: its ``class_names``, else its data set's ``stuff_classes``, stripped.

    ``templates``, if given, are the prompts that they are put into.

    Raises:
        OvsegError: there are none.
    """
    if "class_names" in request:
        return _flatten(request["class_names"], "class_names", request.get("templates"))
    dataset = request.get("meta", {}).get("dataset_name")
    if dataset is None:
        raise OvsegError('give the words to look for: "class_names" or "meta": {"dataset_name": ...} in each request')
    names = MetadataCatalog.get(dataset).get("stuff_classes")
    if not names:
        raise OvsegError(f"the data set {dataset} has no stuff_classes in its metadata: set them when registering it")
    return _flatten([name.strip() for name in names], f"stuff_classes of {dataset}", request.get("templates"))


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
