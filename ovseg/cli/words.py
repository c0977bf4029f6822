"""Words of command lines."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ovseg.errors import OvsegError, argument
from ovseg.hub.table import WORDS, is_model
from ovseg.hub.words import read_words as words_of_folder
from ovseg.io.files import is_file
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger("ovseg.demo")

Words = Annotated[
    str | None,
    typer.Option(
        "--words",
        "--vocabulary",
        "-w",
        metavar="WORDS|FILE",
        help="Words to look for, as 'cat, sofa'; with synonyms, as 'cat, kitten; sofa, couch'; or a text file with one "
        "word per line, NAME or NAME: SYNONYM, SYNONYM.",
    ),
]
LabelSetName = Annotated[
    str | None, typer.Option("--label-set", metavar="NAME", help="Words of a data set, such as ade20k_150 or coco.")
]
Background = Annotated[
    str,
    typer.Option(
        "--background",
        metavar="WORDS",
        help="Background words, as 'floor, wall', whose pixels are unlabelled; without them every pixel gets one of "
        "the words to look for.",
    ),
]


def read_words(words: str | None, label_set: str | None = None, background: str = "", model: str = "") -> Vocabulary:
    """Return the vocabulary of the options ``--words``, ``--label-set`` and ``--background``.

    Args:
        words: words separated by commas; words separated by semicolons with synonyms separated by commas; or a file.
        label_set: name of a label set; exactly one of this and ``words`` is given, unless the model has words.
        background: background words separated by commas.
        model: of the command; a folder of ``save_pretrained`` may have words.

    Raises:
        OvsegError: none or both of them are given, or words are not valid.
    """
    own = Path(model) / WORDS
    if words is None and label_set is None and model and is_model(model) and is_file(own):
        vocabulary = words_of_folder(own)
    elif (words is None) == (label_set is None):
        both = "both are given" if words is not None else "none is given"
        raise OvsegError(f"--words or --label-set is needed, and {both}: write for example --words 'cat, sofa'")
    elif label_set is not None:
        vocabulary = Vocabulary.from_label_set(label_set)
    elif _is_file(words := words or ""):
        vocabulary = Vocabulary.from_file(words)
    elif ";" in words:
        vocabulary = Vocabulary.from_string(words, "--words")
    else:
        vocabulary = Vocabulary.from_words(_split(words, "--words"), "--words")
    return vocabulary.with_background(_split(background, "--background")) if background.strip() else vocabulary


def _is_file(words: str) -> bool:
    """Return whether the value of ``--words`` is meant as a file: a path with a suffix, or a file that exists."""
    if any(mark in words for mark in "\n\0;"):
        return False
    try:
        return Path(words).is_file() or (bool(re.fullmatch(r"\.\w{1,5}", Path(words).suffix)) and "," not in words)
    except OSError:  # too long for a name
        return False


def _split(text: str, name: str) -> list[str]:
    """Return the words between commas.

    Raises:
        OvsegError: one of them is blank.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise OvsegError(f"{argument(name)} {text!r} has a blank word: write for example 'cat, sofa'")
    return words


def words_of_demo(args: argparse.Namespace) -> Vocabulary:
    """Return the vocabulary of ``demo.py``'s options.

    Raises:
        OvsegError: words are not valid.
    """
    background = [word.strip() for text in args.background for word in re.split("[,;]", text.strip(" ,;"))]
    if background and not all(background):
        raise OvsegError(f"--background {args.background} has a blank word: write for example 'other, background'")
    if args.vocabulary:
        return Vocabulary.from_file(args.vocabulary).with_background(background)
    if args.label_set:
        return Vocabulary.from_label_set(args.label_set).with_background(background)
    words: Sequence[str] = args.class_names
    vocabulary = Vocabulary.of("; ".join(words) if any(";" in word for word in words) else words, "--class-names")
    for name in vocabulary.names:
        if "," in name:
            logger.warning("%r is looked for as one word; give several words separated by blanks", name)
    return vocabulary.with_background(background)
