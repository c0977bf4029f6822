"""Protocols of evaluation: the words that a model is asked, and the conversion of its answers to classes.

The protocols of PASCAL VOC are those of ``baselines`` 6.1: PAS-20 (background is ignored), PAS-20b (OpenSeg's rule, its
spec 7.4: the model chooses among the 59 names of PASCAL Context, and the 39 that VOC has not are background) and PAS-21
(ODISE's and FC-CLIP's: background is one class with those 39 names for synonyms). Their figures differ by 13 to 17
points for the same model and must not be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog

from ovseg.data.benchmarks import find_dataset
from ovseg.data.custom.names import folder_name
from ovseg.data.worlds import register_worlds
from ovseg.errors import OvsegError
from ovseg.vocabulary import VARIANTS, Vocabulary, label_set


@dataclass(frozen=True)
class Protocol:
    """Q words are asked, K classes are scored.

    Attributes:
        dataset: registered name.
        tag: the field's short name of the protocol, e.g. "PAS-20b"; the data set's name (the stem of a
            YAML file) where there is none.
        variant: "names", each class is asked by its registered name, verbatim; or "synonyms", by every synonym.
        vocabulary: the Q words that the model is asked.
        class_names: the K classes that are scored.
        to_class: the class of each of the Q words; None when the words are the classes.
        ignore_label: the value of pixels that do not count; None when there is none.
        background: what becomes of pixels outside all things: "none", "ignored", "word", "leftover words" or
            "synonyms"; see :attr:`ovseg.vocabulary.LabelSet.background`.
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
        """Return the classes of words.

        Args:
            label_map: integers in [0,Q) of any shape, the indices of words in the vocabulary.

        Returns:
            integers in [0,K), of the same shape and dtype; the array itself when the words are the classes.
        """
        if self.to_class is None:
            return label_map
        return np.asarray(self.to_class, dtype=label_map.dtype)[label_map]

    def record(self) -> dict[str, str | int | None]:
        """Return what must agree before two results are compared, for JSON; aliases count as their data set."""
        benchmark = find_dataset(self.dataset)
        return {
            "dataset": benchmark.name if benchmark else folder_name(self.dataset),
            "tag": self.tag,
            "variant": self.variant,
            "vocabulary": self.vocabulary.version,
            "num_words": len(self.vocabulary),
            "num_classes": len(self.class_names),
            "ignore_label": self.ignore_label,
            "background": self.background,
        }


def protocol_of(dataset_name: str, variant: str = "names") -> Protocol:
    """Return the protocol of a registered data set.

    Args:
        dataset_name: has ``stuff_classes`` in its metadata, and possibly a ``vocabulary``
            (:class:`ovseg.vocabulary.Vocabulary`) with a word for each of them, in order. Without one the benchmarks
            have the words of their label sets, and any other data set has its class names alone.
        variant: one of :data:`ovseg.vocabulary.VARIANTS`; see :class:`Protocol`.

    Raises:
        OvsegError: no class names; a vocabulary of another size; or synonyms are asked for and there are none.
    """
    if variant not in VARIANTS:
        raise OvsegError(f"TEST.VOCABULARY is {variant!r}; choose one of {', '.join(VARIANTS)}")
    names, metadata = class_names_of(dataset_name), MetadataCatalog.get(dataset_name)
    ignore_label = metadata.get("ignore_label")
    vocabulary: Vocabulary | None = metadata.get("vocabulary")
    benchmark = find_dataset(dataset_name)
    labels = label_set(benchmark.label_set) if benchmark else None
    if vocabulary is None and labels and labels.names == names:  # else registered by another library
        vocabulary = Vocabulary.from_label_set(labels.name, variant)
        background = "synonyms" if variant == "synonyms" and labels.background_words else labels.background
        classes = None
        if vocabulary.background:
            own = tuple(labels.names.index(name) for name in vocabulary.foreground)
            classes = own + (labels.background_id,) * len(vocabulary.background)
        return Protocol(dataset_name, labels.tag, variant, vocabulary, names, classes, ignore_label, background)
    if vocabulary is None:
        if variant == "synonyms":
            raise OvsegError(
                f"TEST.VOCABULARY is synonyms, but the classes of {dataset_name!r} have no known ones: set it to "
                "names, or give the data set a vocabulary"
            )
        vocabulary = Vocabulary(names, tuple((name,) for name in names), f"stuff_classes of {dataset_name}")
    if len(vocabulary) != len(names):
        raise OvsegError(
            f"data set {dataset_name!r} has {len(names)} classes but {len(vocabulary)} words in {vocabulary.origin}: "
            "give one word for each class, in the same order"
        )
    if variant == "names":
        vocabulary = vocabulary.names_only()
    tag = folder_name(dataset_name)
    return Protocol(dataset_name, tag, variant, vocabulary, names, None, ignore_label, background="none")


def class_names_of(dataset_name: str) -> tuple[str, ...]:
    """Return the names of a data set's classes, stripped.

    Raises:
        OvsegError: its metadata has no ``stuff_classes``.
    """
    register_worlds([dataset_name])
    names = MetadataCatalog.get(dataset_name).get("stuff_classes")
    if not names:
        raise OvsegError(
            f"data set {dataset_name!r} has no stuff_classes in its metadata: is its name right, and is it "
            "registered for semantic segmentation?"
        )
    return tuple(str(name).strip() for name in names)
