"""The words that a request to a model asks for: its own, or those of a data set."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ovseg.data.catalog import register_on_demand
from ovseg.data.protocol import seen_flags
from ovseg.errors import OvsegError, shown
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.templates import check_templates

logger = logging.getLogger(__name__)


def requested_words(request: Mapping[str, Any], datasets: Sequence[str] = ()) -> Vocabulary:
    """Return the words of one entry of a batch: its ``class_names``, else its data set's ``stuff_classes``, stripped.

    ``templates`` of the request, if given, are the prompts that they are put into.

    Args:
        request: the entry; ``class_names`` is a :class:`Vocabulary`, or K entries of str or sequences of synonyms.
        datasets: of the configuration; Detectron2's own predictor and loaders name neither words nor a data set, and
            get the words of the first of these, which may also be a JSON file with a list of names.

    Raises:
        OvsegError: there are none, or templates are no list of texts with one ``{}`` each.
    """
    words, templates = request.get("class_names"), request.get("templates")
    if templates is not None:
        check_templates(templates, "templates")
    if isinstance(words, Vocabulary):
        return words if templates is None else words.with_templates(templates)
    if "class_names" in request:
        return Vocabulary.from_class_names(words, templates=templates)
    dataset = request.get("meta", {}).get("dataset_name") or _first(tuple(datasets))
    names = _words_of(dataset)
    if not names:
        raise OvsegError(f"the data set {dataset} has no stuff_classes in its metadata: set them when registering it")
    return Vocabulary.from_class_names([name.strip() for name in names], f"stuff_classes of {dataset}", templates)


def seen_classes(request: Mapping[str, Any], words: Vocabulary, default: bool = False) -> Tensor:
    """Return which words of a request are words of the model's training, bool (K,).

    They are those of ``seen`` in the request, one bool per class; or, if the words are those of the request's data set,
    of its metadata: ``trainable_flag``, 0 or 1 per class (SimBaseline), or all names but ``val_extra_classes``
    (ZegFormer). For other words, and for an added "others", it is ``default``.

    Raises:
        OvsegError: ``seen`` or ``trainable_flag`` is not one bool per class.
    """
    dataset = request.get("meta", {}).get("dataset_name", "")
    own = [name.strip() for name in _words_of(dataset) or ()] if dataset else []
    of_dataset = own and list(words.names) in (own, [*own, "others"])
    flags, source = request.get("seen"), "seen"
    if flags is None and of_dataset:
        flags, source = seen_flags(dataset, words.names), f"trainable_flag of {dataset}"
    if flags is None:
        return torch.full((len(words),), default)
    values = flags.tolist() if isinstance(flags, (np.ndarray, Tensor)) else flags
    if not isinstance(values, Iterable):
        raise OvsegError(f"{source} is {shown(flags)}: give a list of True or False, one for each word")
    values = list(values)
    added = len(words) - len(values)
    if not all(isinstance(value, (bool, int, np.bool_, np.integer)) and value in (0, 1) for value in values):
        raise OvsegError(f"{source} is {shown(values)}: give True or False for each word")
    if added and not (added == 1 and len(values) == 1 and words.names[-1] == "others"):
        raise OvsegError(f"{source} has {len(values)} values for {len(words)} words: give one for each word")
    return torch.tensor([bool(value) for value in values] + [default] * added)


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
    if dataset.endswith(".json"):
        return _names_in(dataset)
    register_on_demand(dataset)
    return MetadataCatalog.get(dataset).get("stuff_classes")


@functools.cache
def _names_in(path: str) -> list[str]:
    """Return the names in a JSON file.

    Raises:
        OvsegError: the file is missing, or holds anything but a list of names.
    """
    try:
        names = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OvsegError(
            f"the list of class names {path} cannot be read ({error.strerror}): correct the configuration, or give "
            '"class_names" in each request'
        ) from error
    except ValueError as error:
        raise OvsegError(f"the list of class names {path} is not valid JSON ({error})") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise OvsegError(f"{path} is {shown(names)}: it must hold a list of class names")
    return names
