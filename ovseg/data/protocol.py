"""What a model is asked on a data set, and how its answers become the data set's classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog

from ovseg.errors import OvsegError
from ovseg.vocabulary import Vocabulary

VARIANTS = ("names", "synonyms")


@dataclass(frozen=True)
class Protocol:
    """Q words are asked, K classes are scored.

    Attributes:
        dataset: registered name.
        tag: the field's short name of the protocol, e.g. "PAS-20b"; the data set's name where there is none.
        variant: "names", the registered names verbatim; or "synonyms", every synonym of a class, best one wins.
        vocabulary: the Q words that the model is asked.
        class_names: the K classes that are scored.
        to_class: the class of each of the Q words; None when the words are the classes.
        ignore_label: the value of pixels that do not count; None when there is none.
        background: how pixels outside all named things are treated: "none" (there is no such class), "ignored", "word"
            (asked as one word), "leftover words" (any of many words counts as background), "synonyms" (many words
            are the background's synonyms).
    """

    dataset: str
    tag: str
    variant: str
    vocabulary: Vocabulary
    class_names: tuple[str, ...]
    to_class: tuple[int, ...] | None
    ignore_label: int | None
    background: str

    def classes_of(self, label_map: np.ndarray) -> np.ndarray:
        """Class indices, any integer array, from indices of asked words; the array itself where they are the same."""
        if self.to_class is None:
            return label_map
        return np.asarray(self.to_class, dtype=label_map.dtype)[label_map]


def check_variant(variant: str) -> None:
    """Raise OvsegError unless ``variant`` is one of :data:`VARIANTS`."""
    if variant not in VARIANTS:
        raise OvsegError(f"TEST.VOCABULARY is {variant!r}; choose one of {', '.join(VARIANTS)}")


def protocol_of(dataset_name: str, variant: str = "names") -> Protocol:
    """The protocol of a registered data set.

    Args:
        dataset_name: has ``stuff_classes`` in its metadata.
        variant: one of :data:`VARIANTS`.

    Raises:
        OvsegError: no class names, or no synonyms where they are asked for.
    """
    check_variant(variant)
    metadata = MetadataCatalog.get(dataset_name)
    names = class_names_of(dataset_name)
    vocabulary = metadata.get("vocabulary")
    if vocabulary is None:
        if variant == "synonyms":
            raise OvsegError(f"TEST.VOCABULARY is synonyms, but data set {dataset_name!r} has none: set it to names")
        vocabulary = Vocabulary(names, tuple((name,) for name in names), f"stuff_classes of {dataset_name}")
    elif variant == "names":
        vocabulary = Vocabulary(vocabulary.names, tuple((name,) for name in vocabulary.names), vocabulary.origin)
    return Protocol(
        dataset_name, dataset_name, variant, vocabulary, names, None, metadata.get("ignore_label"), background="none"
    )


def class_names_of(dataset_name: str) -> tuple[str, ...]:
    """Names of a data set's classes, blanks at the ends removed.

    Raises:
        OvsegError: its metadata has no ``stuff_classes``.
    """
    names = MetadataCatalog.get(dataset_name).get("stuff_classes")
    if not names:
        raise OvsegError(
            f"data set {dataset_name!r} has no stuff_classes in its metadata: is its name right, and is it "
            "registered for semantic segmentation?"
        )
    return tuple(str(name).strip() for name in names)
