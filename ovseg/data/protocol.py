"""Protocols of evaluation: the words that a model is asked, and the conversion of its answers to classes.

The protocols of PASCAL VOC are those of ``baselines`` 6.1: PAS-20, background is ignored; PAS-20b (there PAS-21a,
OpenSeg's rule, its specification 7.4), the model chooses among the 59 names of PASCAL Context, and the 39 that VOC
lacks are background; PAS-21 (there PAS-21b, ODISE's and FC-CLIP's), background is one class with a list of synonyms;
and PAS-21t (GroupViT's), background is where no word scores as much as a threshold. Their figures differ by 13 to 17
points for the same model and must not be compared.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ovseg.data.benchmarks import find_dataset
from ovseg.data.custom.names import folder_name
from ovseg.data.worlds import register_worlds
from ovseg.errors import OvsegError
from ovseg.io.files import is_file
from ovseg.vocabulary import VARIANTS, Vocabulary, label_set

logger = logging.getLogger(__name__)

SYNONYM_LEVELS = ("region", "pixel")
BACKGROUND = "background"  # the name of the class of pixels outside all things


@dataclass(frozen=True)
class Protocol:
    """Q words are asked, K classes are scored.

    Attributes:
        dataset: registered name.
        tag: the field's short name of the protocol, e.g. "PAS-20b"; the data set's name (the stem of a
            YAML file) where there is none.
        variant: "names", each class is asked by its registered name, verbatim; "synonyms", by every synonym; or
            "list FILE", by the names in a file of this name.
        vocabulary: the Q words that the model is asked.
        class_names: the K classes that are scored.
        to_class: the class of each of the Q words; None when the words are the classes.
        ignore_label: the value of pixels that do not count; None when there is none.
        background: what becomes of pixels outside all things: "none", "ignored", "word", "leftover words" or
            "synonyms", see :attr:`ovseg.vocabulary.LabelSet.background`; "threshold"; or "window threshold", which
            OVSegmentor applies itself, in each window: see :class:`ovseg.naming.group_pixels.GroupPixels`.
        synonyms: where the maximum over the texts of a class is taken: "region", of the scores of a mask, or of a place
            of a dense map, before they are rendered to pixels; "pixel", of the scores of a pixel, each text being a
            word of its own until then; "none" if every class has one text.
        threshold: score below which a pixel is background; None for no threshold.
        background_id: with a threshold, the class of these pixels.
        words: "all", every image is asked for all words; or "present", for those of its classes alone (Grounding mIoU).
    """

    dataset: str
    tag: str
    variant: str
    vocabulary: Vocabulary
    class_names: tuple[str, ...]
    to_class: tuple[int, ...] | None
    ignore_label: int | None
    background: str
    synonyms: str = "none"
    threshold: float | None = None
    background_id: int | None = None
    words: str = "all"

    def classes_of(self, label_map: np.ndarray, score_map: np.ndarray | None = None) -> np.ndarray:
        """Return the classes of words.

        Args:
            label_map: integers in [0,Q) of any shape, the indices of words in the vocabulary.
            score_map: of the same shape, the scores of these words; needed with a threshold.

        Returns:
            integers in [0,K), of the same shape and dtype; the array itself when the words are the classes.
        """
        classes = label_map
        if self.to_class is not None:
            classes = np.asarray(self.to_class, dtype=label_map.dtype)[label_map]
        if self.threshold is None:
            return classes
        if score_map is None:
            raise OvsegError(
                "TEST.BACKGROUND_THRESHOLD needs the score_map of each label_map: set it to None for a model that "
                "gives labels alone"
            )
        return np.where(score_map < self.threshold, classes.dtype.type(self.background_id), classes)

    def words_of_classes(self) -> list[list[int]]:
        """Return for each of the K classes the indices of its words."""
        words: list[list[int]] = [[] for _ in self.class_names]
        for word, of in enumerate(self.to_class or range(len(self.vocabulary))):
            words[of].append(word)
        return words

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
            "synonyms": self.synonyms,
            "words": self.words,
        }


def configured_protocol(cfg: CfgNode, dataset_name: str) -> Protocol:
    """Return the protocol of a registered data set with the keys of ``cfg.TEST``; see :func:`protocol_of`."""
    test = cfg.TEST
    protocol = protocol_of(dataset_name, test.VOCABULARY, test.SYNONYMS, test.BACKGROUND_THRESHOLD)
    if cfg.MODEL.META_ARCHITECTURE == "OVSegmentor" and protocol.vocabulary.names[0] == BACKGROUND:
        protocol = replace(protocol, tag=_with_t(protocol.tag), background="window threshold")
    return replace(protocol, words="present") if test.ORACLE == "words" else protocol


def protocol_of(
    dataset_name: str, variant: str = "names", synonyms: str = "region", threshold: float | None = None
) -> Protocol:
    """Return the protocol of a registered data set.

    Args:
        dataset_name: has ``stuff_classes`` in its metadata, and possibly a ``vocabulary``
            (:class:`ovseg.vocabulary.Vocabulary`) with a word for each of them, in order. Without one the benchmarks
            have the words of their label sets, and any other data set has its class names alone.
        variant: one of :data:`ovseg.vocabulary.VARIANTS`, see :class:`Protocol`; or the path of a file with the names
            of each class, see :meth:`ovseg.vocabulary.Vocabulary.from_file`, in the order of the classes.
        synonyms: one of :data:`SYNONYM_LEVELS`; see :class:`Protocol`.
        threshold: score below which a pixel is background, which is then no word; None for the data set's own rule.

    Raises:
        OvsegError: no class names; a vocabulary or a list of another size; synonyms are asked for and there are none;
            or a threshold is given and no class is background.
    """
    if synonyms not in SYNONYM_LEVELS:
        raise OvsegError(f"TEST.SYNONYMS is {synonyms!r}; choose one of {', '.join(SYNONYM_LEVELS)}")
    if variant in VARIANTS:
        protocol = _plain_protocol(dataset_name, variant)
    elif is_file(variant):
        protocol = _with_list(_plain_protocol(dataset_name, "names"), variant)
    else:
        raise OvsegError(
            f"TEST.VOCABULARY is {variant!r}; choose one of {', '.join(VARIANTS)}, or give a file with the names of "
            "each class"
        )
    if threshold is not None:
        protocol = _with_threshold(protocol, threshold)
    if len(protocol.vocabulary.texts) == len(protocol.vocabulary):
        return protocol
    if synonyms == "region":
        return replace(protocol, synonyms="region")
    vocabulary = protocol.vocabulary
    words = range(len(vocabulary)) if protocol.to_class is None else protocol.to_class
    return replace(
        protocol,
        vocabulary=vocabulary.texts_as_words(),
        to_class=tuple(words[index] for index in vocabulary.classes),
        synonyms="pixel",
    )


def _plain_protocol(dataset_name: str, variant: str) -> Protocol:
    """Return the protocol without threshold, with synonyms at the level of regions."""
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


def _with_list(protocol: Protocol, path: str) -> Protocol:
    """Return a protocol whose words are those of a file: one entry for each class, or for each word."""
    words = Vocabulary.from_class_list(path).with_templates(protocol.vocabulary.templates)
    known, to_class, background = protocol.class_names, protocol.to_class, protocol.background
    if len(words) == len(known):
        to_class = None
        if background in ("word", "leftover words", "synonyms"):
            several = len(words.synonyms[known.index(BACKGROUND)]) > 1
            background = "synonyms" if several else "word"
    elif len(words) == len(protocol.vocabulary):
        known = protocol.vocabulary.names
    else:
        raise OvsegError(
            f"TEST.VOCABULARY {path} has the names of {len(words)} classes, but {protocol.dataset!r} has {len(known)}: "
            "give one line for each class, in the same order"
        )
    alike = sum(bool(_parts(name) & _parts(*texts)) for name, texts in zip(known, words.synonyms, strict=True))
    if 2 * alike < len(known):
        logger.warning(
            "%s: the names of only %d of %d classes have a word in common with those of %s: is it in the same order?",
            *(path, alike, len(known), protocol.dataset),
        )
    variant = f"list {Path(path).name}"
    return replace(protocol, variant=variant, vocabulary=words, to_class=to_class, background=background)


def _parts(*texts: str) -> set[str]:
    """Return the single words of texts, without letter case."""
    return {part for text in texts for part in re.findall(r"\w+", text.casefold())}


def _with_threshold(protocol: Protocol, threshold: float) -> Protocol:
    """Return a protocol whose background is no word."""
    name = protocol.dataset
    if protocol.background == "leftover words":
        raise OvsegError(
            f"TEST.BACKGROUND_THRESHOLD is {threshold:g}, but {name!r} ({protocol.tag}) has words for background: "
            "evaluate on pascalvoc21_sem_seg_val, or set it to None"
        )
    if BACKGROUND not in protocol.class_names:
        raise OvsegError(
            f"TEST.BACKGROUND_THRESHOLD is {threshold:g}, but no class of {name!r} is called {BACKGROUND!r}: evaluate "
            "on a data set that has one, such as pascalvoc21_sem_seg_val, or set it to None"
        )
    background = protocol.class_names.index(BACKGROUND)
    words = tuple(index for index in range(len(protocol.class_names)) if index != background)
    return replace(
        protocol,
        tag=_with_t(protocol.tag),
        vocabulary=protocol.vocabulary.take(words),
        to_class=words,
        background="threshold",
        threshold=float(threshold),
        background_id=background,
    )


def _with_t(tag: str) -> str:
    """Return the tag of a protocol with a threshold for background."""
    return f"{tag}{'' if tag[-1].isdigit() else '-'}t"


def seen_words(protocol: Protocol) -> list[bool] | None:
    """Return which of the Q words the metadata of the data set counts as words of the training; None if unknown.

    Raises:
        OvsegError: the metadata has another number of classes.
    """
    flags = seen_flags(protocol.dataset, protocol.class_names)
    if flags is None or protocol.to_class is None:
        return flags
    if len(flags) != len(protocol.class_names):
        raise OvsegError(
            f"trainable_flag of {protocol.dataset} has {len(flags)} values for {len(protocol.class_names)} classes: "
            "give one for each class"
        )
    return [flags[index] for index in protocol.to_class]


def seen_flags(dataset_name: str, class_names: Sequence[str]) -> list[bool] | None:
    """Return which of the K classes the metadata of a data set counts as classes of the training; None if unknown.

    They are those with 1 in ``trainable_flag`` (SimBaseline), or all but those named in ``val_extra_classes``
    (ZegFormer).
    """
    metadata = MetadataCatalog.get(dataset_name)
    flags = metadata.get("trainable_flag")
    if flags is None:
        unseen = metadata.get("val_extra_classes")
        return None if unseen is None else [name not in unseen for name in class_names]
    return list(flags)


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
