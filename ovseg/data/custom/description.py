"""YAML file that describes a user's data set; ``docs/your_data.md`` explains every key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import check_file, expand_user, is_dir
from ovseg.io.plain_yaml import read_plain_yaml, unknown_key
from ovseg.vocabulary import Vocabulary, label_set

KINDS = ("labelme", "coco_panoptic", "coco_instances", "masks")  # keys that say where the labels are


@dataclass(frozen=True)
class Description:
    """Content of the file; of the other files, only the lists that it names are read.

    Attributes:
        file: the YAML file.
        root: absolute folder that all paths start from; by default the file's own.
        images: glob patterns or folders.
        masks: of label files; with ``coco_panoptic`` the folder of its PNGs.
        labelme: of labelme's JSON files.
        coco_panoptic, coco_instances: COCO's JSON file.
        captions: file with captions of the images, for OpenSeg, which needs no labels with it.
        names: what belongs to the split, as names that images and masks share; None for all.
        classes: K classes with their synonyms; None takes the categories of the COCO file.
        label_set: the label set that ``classes`` are, if they are one.
        vocabulary: the texts that are asked for each class, in place of the synonyms of ``classes``.
        templates: prompts that the texts are put into, a set's name or a list; None for the model's own.
        ignore_label: value of pixels that do not count.
        first_id: value of the first class in the masks.
        ids: raw value, category or label -> class, or ``"label_set"`` for the label set's own numbers.
        colors: class -> colour or colours.
        unlisted: ``"error"`` or ``"ignore"``: what becomes of values, colours, labels and categories without a class.
        background: class of pixels that no object covers; None ignores them.
        seen, unseen: classes of the two sides of a split.
    """

    file: Path
    root: Path
    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    labelme: tuple[str, ...] = ()
    coco_panoptic: Path | None = None
    coco_instances: Path | None = None
    captions: Path | None = None
    names: tuple[str, ...] | None = None
    classes: Vocabulary | None = None
    label_set: str | None = None
    vocabulary: Vocabulary | None = None
    templates: str | tuple[str, ...] | None = None
    ignore_label: int | None = None
    first_id: int | None = None
    ids: Mapping[Any, Any] | str | None = None
    colors: Mapping[Any, Any] | None = None
    unlisted: str = "error"
    background: str | int | None = None
    seen: tuple[Any, ...] = ()
    unseen: tuple[Any, ...] = ()

    def error(self, key: str, what: str) -> OvsegError:
        """Return an error that names the file and the key."""
        return OvsegError(f"{self.file}, {key}: {what}")

    @contextlib.contextmanager
    def errors_of(self, key: str) -> Iterator[None]:
        """Name the file and the key in errors raised by the block."""
        try:
            yield
        except OvsegError as error:
            raise self.error(key, str(error)) from error

    def path(self, name: str) -> Path:
        return self.root / name

    @property
    def kind(self) -> str:
        """Place of the labels: the first of :data:`KINDS` that is given; ``"captions"`` for captions without labels."""
        return next((kind for kind in KINDS if getattr(self, kind)), "captions")


def read_description(path: str | Path) -> Description:
    """Read and check the YAML file of a data set.

    Raises:
        OvsegError: no such file, no plain YAML, an unknown key (the nearest is named), keys that are missing or do not
            go together, a value of a wrong type; names the file and the key.
    """
    path = Path(path)
    values = read_plain_yaml(path, "data set file")
    for key in values:
        if key not in _READERS:
            raise unknown_key(key, _READERS, str(path))
    folder = path.resolve().parent
    start = Description(path, root=folder)
    root = _path(start, "root", values.pop("root")) if values.get("root") is not None else folder
    if not is_dir(root):
        raise start.error("root", f"there is no folder {root}; images and masks are looked for in it")
    start = replace(start, root=root)
    given = {key: _READERS[key](start, key, value) for key, value in values.items() if value is not None}
    return _checked(replace(start, **given))


def _checked(own: Description) -> Description:
    if not own.images:
        raise OvsegError(f"{own.file} has no images: say where they are, for example images: images/*.jpg")
    kinds = [kind for kind in KINDS if getattr(own, kind)]
    if not kinds and own.captions is None:
        raise OvsegError(f"{own.file} has no masks: say where they are, for example masks: masks/*.png")
    if len(kinds) > 1 and kinds != ["coco_panoptic", "masks"]:
        raise OvsegError(f"{own.file} has {' and '.join(kinds)}: keep one of them")
    if own.kind == "coco_panoptic" and len(own.masks) > 1:
        raise own.error("masks", "give the one folder that holds the PNG files of coco_panoptic")
    if own.label_set is not None:
        if own.classes is not None:
            raise OvsegError(f"{own.file} has classes and label_set: keep one of them")
        with own.errors_of("label_set"):
            own = replace(own, classes=Vocabulary.from_label_set(own.label_set))
    if own.classes is None and kinds and not own.kind.startswith("coco"):
        raise OvsegError(
            f"{own.file} has no classes: list their names, for example classes: [road, sky], or name a label_set"
        )
    if own.vocabulary is not None:
        own = replace(own, classes=_with_texts(own))
    if own.templates is not None:
        if own.classes is None:
            raise own.error("templates", "are prompts for the classes: list the classes, too, or name a label_set")
        with own.errors_of("templates"):
            own = replace(own, classes=own.classes.with_templates(own.templates))
    if own.ids == "label_set":
        if own.label_set is None:
            raise own.error("ids", "label_set stands for the numbers of a label set, but no label_set is named")
        numbers = label_set(own.label_set).dataset_ids
        if None in numbers:
            raise own.error("ids", f"label set {own.label_set!r} has no number for class {numbers.index(None)}")
        own = replace(own, ids=dict(zip(numbers, own.classes.names, strict=True)))
    elif own.ids is not None and not isinstance(own.ids, Mapping):
        raise own.error("ids", f"is {own.ids!r}; write lines of VALUE: CLASS, or label_set for the label set's numbers")
    if own.unlisted not in ("error", "ignore"):
        raise own.error("unlisted", f"is {own.unlisted!r}; choose error or ignore")
    only = {"colors": ("masks",), "first_id": ("masks",), "background": ("labelme", "coco_panoptic", "coco_instances")}
    for key, allowed in only.items():
        if getattr(own, key) is not None and own.kind not in allowed:
            raise own.error(key, f"has no meaning with {own.kind}: remove it")
    raw = [key for key in ("ids", "colors", "first_id") if getattr(own, key) is not None]
    if len(raw) > 1:
        raise OvsegError(f"{own.file} has {' and '.join(raw)}: each says which class a pixel is, keep one of them")
    return own


def _with_texts(own: Description) -> Vocabulary:
    """Return the classes, each with the texts that ``vocabulary`` has for it."""
    if own.classes is None:
        raise own.error("vocabulary", "gives synonyms of classes: list the classes, too, or name a label_set")
    texts = dict(zip(own.vocabulary.names, own.vocabulary.synonyms, strict=True))
    if texts.keys() != set(own.classes.names):
        lacking, foreign = set(own.classes.names) - texts.keys(), texts.keys() - set(own.classes.names)
        name, problem = (min(lacking), "lacks the class") if lacking else (min(foreign), "has a word that is no class:")
        raise own.error("vocabulary", f"{own.vocabulary.origin} {problem} {name!r}: it must have a line for each class")
    return replace(own.classes, synonyms=tuple(texts[name] for name in own.classes.names))


def _path(own: Description, key: str, value: Any) -> Path:
    path = own.root / expand_user(_text(own, key, value))
    other = own.root / value.replace("\\", "/")
    return other if not os.path.exists(path) and os.path.exists(other) else path


def _text(own: Description, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise own.error(key, f"is {value!r}, expected a text")
    return value


def _patterns(own: Description, key: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(expand_user(_text(own, key, pattern))) for pattern in values)


def _names(own: Description, key: str, value: Any) -> tuple[str, ...]:
    path = _path(own, key, value)
    try:
        check_file(path, "list")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError, OvsegError) as error:
        raise own.error(key, f"cannot read the list {path} ({reason_of(error)})") from error
    names = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise own.error(key, f"the list {path} is empty; write one name per line")
    return names


def _classes(own: Description, key: str, value: Any) -> Vocabulary:
    if isinstance(value, str):
        return Vocabulary.from_string(value, f"{key} of {own.file}") if ";" in value else _words(own, key, value)
    if not isinstance(value, list):
        raise own.error(key, f"is {value!r}, expected a list of names, or a file with one name per line")
    for position, entry in enumerate(value, start=1):
        for word in entry if isinstance(entry, list) else [entry]:
            if isinstance(word, int | float) and not isinstance(word, bool):
                raise own.error(key, f"class {position} has the name {word!r}, a number: write what CLIP is asked")
            if not isinstance(word, str):
                raise own.error(key, f"class {position} has the name {word!r}, which is no text: put it into quotes")
    return Vocabulary.from_words(value, origin=f"classes of {own.file}")


def _words(own: Description, key: str, value: Any) -> Vocabulary:
    with own.errors_of(key):
        return Vocabulary.from_file(_path(own, key, value))


def _integer(own: Description, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**16:
        raise own.error(key, f"is {value!r}, expected a whole number from 0 to 65535")
    return value


def _map(own: Description, key: str, value: Any) -> Mapping[Any, Any] | str:
    named = key == "ids" and isinstance(value, str)  # label_set, which is checked later
    if not (isinstance(value, dict) or named) or not value:
        raise own.error(key, f"is {value!r}, expected lines of KEY: VALUE below it")
    return value


def _templates(own: Description, key: str, value: Any) -> str | tuple[str, ...]:
    return tuple(_text(own, key, entry) for entry in value) if isinstance(value, list) else _text(own, key, value)


def _list(own: Description, key: str, value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _class_reference(own: Description, key: str, value: Any) -> str | int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise own.error(key, f"is {value!r}, expected the name of a class")
    return value


_READERS = {
    "root": _path,
    "images": _patterns,
    "masks": _patterns,
    "labelme": _patterns,
    "coco_panoptic": _path,
    "coco_instances": _path,
    "captions": _path,
    "names": _names,
    "classes": _classes,
    "label_set": _text,
    "vocabulary": _words,
    "templates": _templates,
    "ignore_label": _integer,
    "first_id": _integer,
    "ids": _map,
    "colors": _map,
    "unlisted": _text,
    "background": _class_reference,
    "seen": _list,
    "unseen": _list,
}
