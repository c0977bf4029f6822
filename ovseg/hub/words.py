"""The words of a folder of ``save_pretrained``, ``vocabulary.json``."""

from __future__ import annotations

import json
from pathlib import Path

from ovseg.errors import OvsegError
from ovseg.hub.table import WORDS
from ovseg.vocabulary import Vocabulary


def read_words(path: Path) -> Vocabulary:
    """Return the words of a ``vocabulary.json``.

    Raises:
        OvsegError: the file cannot be read, or its words are not valid.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, synonyms = tuple(content["names"]), tuple(tuple(texts) for texts in content["synonyms"])
        background, templates = tuple(content.get("background", ())), content.get("templates")
        templates = None if templates is None else tuple(templates)
        return Vocabulary(names, synonyms, str(path), background, templates, bool(content.get("verbatim")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OvsegError(f"{path} is not a {WORDS} of this package ({error}): copy the folder again") from error


def words_text(vocabulary: Vocabulary) -> str:
    """Return the content of a ``vocabulary.json``."""
    names = ("names", "synonyms", "background", "templates", "verbatim")
    return json.dumps({name: getattr(vocabulary, name) for name in names}, ensure_ascii=False, indent=1) + "\n"
