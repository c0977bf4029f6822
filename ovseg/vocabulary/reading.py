"""Reading of words from lists, texts and files, and checks of single words."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence, Set
from pathlib import Path

from ovseg.errors import OvsegError, reason_of, shown
from ovseg.io.files import check_file

_LARGEST_FILE = 16 * 2**20  # bytes; larger files are not lists of words

logger = logging.getLogger(__name__)

# numbered classes: "0: road", "1 car", "2,sky", "(3) tree"
_NUMBERED = re.compile(r"[(\[]?(\d+)\s*(?:[\s:;,=.)\]|-])\s*(\S.*)")
# classes followed by ids or colours: "road 7", "road,128,64,128", "road #804080"
_FOLLOWED = re.compile(r"(.*?[^\W\d].*?)[\s:;,=|(\[-]+((?:\d+[\s;,]+)*\d+|#[\da-fA-F]{6})[)\]]?")
# a class of a prompt-engineered list: "3:sky,clouds"; the second is what OpenSeg's lists call pixels without a class
_CLASS, _NO_CLASS = re.compile(r"(\d+)\s*:\s*(\S.*)"), "invalid_class_id"
_NUMBERS = re.compile(r"[\d\s:;,.]+")
_LONGEST_ROW = 200  # characters; longer rows are not names
_FORMATS = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML", ".pbtxt": "a label map", ".xml": "XML"}
# byte order mark, zero-width space, word joiner, soft hyphen, marks of direction; zero-width joiners belong to words
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060\u00ad\u200e\u200f"))

Entry = tuple[str, ...]  # a name and its synonyms


def unique(texts: Sequence[str]) -> Entry:
    """Return each text once, in order."""
    return tuple(dict.fromkeys(texts))


def clean_text(text: str) -> str:
    """Return a text composed (Unicode NFC), without invisible characters and blanks at its ends."""
    return unicodedata.normalize("NFC", text.translate(_INVISIBLE)).strip()


def fold_text(text: str) -> str:
    """Return a text in the form in which words are compared: cleaned, without letter case."""
    return clean_text(text).casefold()


def check_text(text: str, where: str) -> None:
    """Raise OvsegError unless a value is a visible text without undecodable bytes and control characters."""
    if not isinstance(text, str):
        raise OvsegError(f"{where} is {shown(text)}, which is not a text: give a str")
    if not text.strip() or all(unicodedata.category(character) in ("Cf", "Zs") for character in text):
        raise OvsegError(f"{where} is blank: remove it, or give it a name")
    for character in text:
        if unicodedata.category(character) == "Cs":  # undecodable bytes of a command line arrive as surrogates
            raise OvsegError(f"{where} ({shown(text)}) is not valid UTF-8 text: type it again or use a vocabulary file")
        if unicodedata.category(character) in ("Cc", "Zl", "Zp"):
            raise OvsegError(f"{where} ({shown(text)}) holds the control character U+{ord(character):04X}: remove it")


def read_list(words: Sequence[str | Sequence[str]], origin: str) -> list[Entry]:
    """Return cleaned words of a list; see :meth:`ovseg.vocabulary.Vocabulary.from_words`.

    Raises:
        OvsegError: one str instead of a list, a word that is not a text, or a comma at the end of a word.
    """
    if isinstance(words, str):
        raise OvsegError(f"{origin} is the single text {shown(words)}: give a list, for example ['cat', 'dog']")
    entries = []
    for position, word in enumerate(_members(words, origin), start=1):
        word = word.tolist() if hasattr(word, "tolist") else word  # NumPy's and pandas' rows
        entry = tuple(word) if isinstance(word, (list, tuple)) else (word,)
        for text in entry:
            if not isinstance(text, str):
                raise OvsegError(f"word {position} in {origin} is {shown(text)}, which is not a text: give a str")
        entries.append(entry)
    for position, entry in enumerate(entries, start=1):
        _check_commas(entry, position, entries, origin)
    _check_numbered([entry[0].strip() for entry in entries if entry], origin)
    return [unique([clean_text(text) for text in entry] or [""]) for entry in entries]


def _members(words: Iterable, origin: str) -> list:
    """Return the elements of an ordered collection of words."""
    kind = type(words).__name__
    if isinstance(words, (Set, Mapping, bytes, bytearray)) and not isinstance(words, (KeysView, ItemsView)):
        why = (
            " has no order, and results follow the words' order"
            if isinstance(words, Set)
            else " is not a list of words"
        )
    elif getattr(words, "ndim", 1) > 1 and not hasattr(words, "tolist"):
        why = " is a table"
    elif (isinstance(words, Iterable) or hasattr(words, "tolist")) and getattr(words, "ndim", 1):
        return words.tolist() if hasattr(words, "tolist") else list(words)
    else:
        why = " is not a list of words"
    raise OvsegError(
        f"{origin}: {shown(words)} ({kind}){why}: give a list, for example ['cat', 'dog'], or with synonyms "
        "['cat', ['sofa', 'couch']]"
    )


def read_string(text: str, origin: str) -> list[Entry]:
    """Return the words of ``"person, child; dog"``: separated by semicolons, synonyms by commas; may end in ``;``.

    Raises:
        OvsegError: an empty synonym, or an empty word between others.
    """
    parts = text.split(";")
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    entries = []
    for position, part in enumerate(parts, start=1):
        texts = [clean_text(synonym) for synonym in part.split(",")]
        if "" in texts:
            problem = "a comma too many" if len(texts) > 1 else "a semicolon too many"
            raise OvsegError(f"word {position} in {origin} ({text!r}) is blank: there is {problem}")
        entries.append(unique(texts))
    return entries


def read_file(path: Path) -> list[Entry]:
    """Return the words of a file with one word per line; see :meth:`ovseg.vocabulary.Vocabulary.from_file`.

    Raises:
        OvsegError: missing or unreadable file, not UTF-8 text, a bad line; names file and line.
    """
    entries = []
    lines_of: dict[str, int] = {}
    lines = [clean_text(line) for line in _read_lines(path)]
    words = [line for line in lines if line and not line.startswith("#")]
    if ids := _class_ids(words):
        entries = _read_classes(lines, path)
        plain = all(len(names) == 1 for names in entries)  # a list for people, and not a prompt-engineered one
        if plain or ids != list(range(ids[0], ids[0] + len(ids))):
            logger.warning("%s numbers its words: the numbers are not read, the order of the lines counts", path)
        return entries
    _check_numbered(words, str(path))
    if len(words) > 1 and all(word[0] in "-*\"'" for word in words):
        raise OvsegError(
            f"{path} has {words[0][0]} before each word ({words[0]!r}): write the names only, one per line"
        )
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        name, _, rest = (part.strip() for part in line.partition(":"))
        where = f"line {number} of {path}"
        if not name:
            raise OvsegError(f"{where} has no name before the colon: write name: synonym, synonym")
        if name.endswith(","):
            raise OvsegError(f"{where} ends in a comma ({name!r}): write one word per line, without commas")
        first = lines_of.setdefault(name.casefold(), number)
        if first != number:
            raise OvsegError(
                f"the word {name!r} comes twice in {path} (lines {first} and {number}): remove one of them"
            )
        texts = [text.strip() for text in rest.split(",")] if rest else []
        if "" in texts:
            raise OvsegError(f"{where} has an empty synonym (a comma too many) after {name!r}")
        for text in (name, *texts):
            check_text(text, where)
        entries.append(unique((name, *texts)))
    return entries


def _class_ids(rows: Sequence[str]) -> list[int]:
    """Return the ids if rows are ``id:name1,name2,...`` with ascending ids, of which a single one is no list."""
    found = [match.groups() for match in map(_CLASS.fullmatch, rows) if match]
    ids = [int(number[:9]) for number, _ in found]
    is_list = 1 < len(found) == len(rows) and ids == sorted(set(ids))
    return ids if is_list and not all(_NUMBERS.fullmatch(names) for _, names in found) else []


def _read_classes(lines: Sequence[str], path: Path) -> list[Entry]:
    """Return the names of each class of a prompt-engineered list (:func:`_class_ids`), without the ids."""
    entries = []
    for number, line in enumerate(lines, start=1):
        if not (found := _CLASS.fullmatch(line)) or found[2] == _NO_CLASS:
            continue
        where = f"line {number} of {path}"
        names = [name.strip() for name in found[2].split(",")]
        if "" in names:
            raise OvsegError(f"{where} has an empty name (a comma too many): write id:name,name")
        for name in names:
            check_text(name, where)
        entries.append(unique(names))
    return entries


def _check_numbered(words: Sequence[str], origin: str) -> None:
    """Raise OvsegError if words are numbers, or if all words, or all but the first, have ids or colours."""
    if len(words) > 1 and all(_NUMBERS.fullmatch(word.partition(":")[2] or word) for word in words):
        raise OvsegError(
            f"{origin} has numbers for names or synonyms ({words[0]!r}), which CLIP would read as words: write names"
        )
    for rows in (words, words[1:]):
        if len(rows) > 1 and (_are_numbered(rows) or _are_followed(rows)):
            raise OvsegError(
                f"{origin} numbers its words ({rows[0]!r}), and CLIP would read the numbers: write the names "
                "only, in their order; values and colours of masks go into `ids` or `colors` of the data set's YAML "
                "file"
            )


def _are_numbered(rows: Sequence[str]) -> bool:
    """Return whether the rows begin with ascending numbers, and their names differ."""
    found = [match.groups() for match in map(_NUMBERED.fullmatch, rows) if match]
    numbers, names = [int(number[:9]) for number, _ in found], {name for _, name in found}
    return len(found) == len(rows) == len(names) and numbers == sorted(set(numbers))


def _are_followed(rows: Sequence[str]) -> bool:
    """Return whether all rows end in colours, or in 0, 1, 2, ... or 1, 2, 3, ..., and their names differ."""
    found = [match.groups() for row in rows if (match := _FOLLOWED.fullmatch(row[:_LONGEST_ROW]))]
    if not len(found) == len(rows) == len({name for name, _ in found}):
        return False
    colors = all("#" in values or len(re.findall(r"\d+", values)) > 2 for _, values in found)
    counted = [[str(first + place) for place in range(len(rows))] for first in (0, 1)]
    return colors or [values for _, values in found] in counted


def _check_commas(entry: Entry, position: int, entries: Sequence[Entry], origin: str) -> None:
    """Raise OvsegError for commas at the ends of texts: unquoted, ``cat, dog`` arrives as ``cat,`` and ``dog``."""
    for text in entry:
        if clean_text(text).strip(" ,") != clean_text(text):
            bare = [clean_text(other[0]).strip(" ,") for other in entries if other]
            names = " ".join(f'"{name}"' for name in bare if name) or '"cat" "dog"'
            raise OvsegError(
                f"word {position} in {origin} is {text!r}, with a comma at one end: separate words by blanks, not by "
                f"commas, and quote a name of several words, like {names}"
            )


def _read_lines(path: Path) -> list[str]:
    try:
        if check_file(path, "vocabulary file").st_size > _LARGEST_FILE:
            raise OvsegError(f"{path} is larger than {_LARGEST_FILE >> 20} MB: give a list of words, one per line")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in _FORMATS or text.lstrip().startswith(("{", "[", "item {", "---")):
            what = _FORMATS.get(path.suffix.lower(), "JSON, YAML or a label map")
            raise OvsegError(f"{path} is {what}, not a list of words: write a text file with one name per line")
        return text.split("\n")
    except UnicodeDecodeError as error:
        raise OvsegError(f"{path} is not UTF-8 text (byte {error.start}): save the list of words as UTF-8") from error
    except OSError as error:
        raise OvsegError(f"cannot read the vocabulary file {path}: {reason_of(error)}") from error
