"""Worlds: plug-ins that bring images, labels and words of their own, each imported when something asks for it by name.

A world named ``toy`` answers to ``toy:train`` (the images of a split, where options take a folder or a file of
captions), ``toy`` and ``toy_base`` (its words, where options take a vocabulary; its crops, where they take a validation
set) and ``toy_...`` (its data sets, registered with Detectron2 when a configuration names one).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.vocabulary import Vocabulary, label_set_names

# name -> module with an attribute WORLD; it is imported when the name is used, and not before
MODULES = {"toy": "ovseg.toy.registration"}


@dataclass(frozen=True)
class World:
    """Parts that a plug-in provides.

    Attributes:
        name: the prefix of all its names.
        class_names: K names; those of ``base_classes`` come first.
        base_classes: names that its training split labels.
        records: (split, number of images or None for all) -> Detectron2 dataset dicts with ``file_name``,
            ``image_id``, ``captions`` and what ``regions`` reads; raises OvsegError for an unknown split.
        regions: dataset dict -> the ground-truth masks of its image, bool (H, W), each with its class number.
        register: registers the data sets with Detectron2, without making any image; may be called repeatedly.
    """

    name: str
    class_names: tuple[str, ...]
    base_classes: tuple[str, ...]
    records: Callable[[str, int | None], list[dict[str, Any]]]
    regions: Callable[[dict[str, Any]], list[tuple[np.ndarray, int]]]
    register: Callable[[], None]


def find_world(name: str) -> World | None:
    """Return the world that owns a name such as ``toy``, ``toy:train`` or ``toy_sem_seg_val``; None if none does."""
    for prefix, module in MODULES.items():
        if name == prefix or name.startswith((f"{prefix}:", f"{prefix}_")):
            return importlib.import_module(module).WORLD
    return None


def world_words(name: str) -> tuple[str, ...] | None:
    """Return the words of a world's vocabulary (``toy``: all classes, ``toy_base``: base classes); None for others."""
    if (world := find_world(name)) is None:
        return None
    return {world.name: world.class_names, f"{world.name}_base": world.base_classes}.get(name)


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a world ("toy", "toy_base"), of a label set, or of a file, with their synonyms."""
    return tuple(dict.fromkeys(text for texts in vocabulary_of(name).synonyms for text in texts))


def vocabulary_of(name: str) -> Vocabulary:
    """Return the vocabulary of a world ("toy", "toy_base"), of a label set, or of a file."""
    if (words := world_words(name)) is not None:
        return Vocabulary.of(words)
    return Vocabulary.from_label_set(name) if name in label_set_names() else Vocabulary.from_file(name)


def is_split(root: str) -> bool:
    """Return whether a name such as ``toy:train`` is the split of a world, not a path."""
    return root.partition(":")[0] in MODULES and ":" in root


def split_records(root: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the dataset dicts of a split such as ``toy:train``, the first ``limit`` of them.

    Raises:
        OvsegError: the world has no such split.
    """
    return find_world(root).records(root.partition(":")[2], limit)


def split_folder(root: str) -> Path:
    """Return the folder that holds the images of a split such as ``toy:train``.

    Raises:
        OvsegError: the world has no such split.
    """
    return Path(split_records(root)[0]["file_name"]).parent


def register_worlds(names: Iterable[str]) -> None:
    """Register the data sets of every world that owns one of these names of data sets."""
    for name in names:
        if (world := find_world(name)) is not None:
            world.register()
