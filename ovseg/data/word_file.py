"""The word file of captions: made once by ``tools/extract_caption_words.py``, read by the training of OpenSeg.

JSON Lines, UTF-8. The first line is an object with ``caption_words`` (version of the format), ``settings`` (what words
depend on), ``tagger`` (which one was used), ``datasets``, ``captions`` (number of lines that follow) and ``sha256`` of
these lines; each further line is an object with a ``caption`` and its ``words``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.errors import OvsegError, reason_of, shown
from ovseg.io.files import atomic_path, check_file

VERSION = 1
TOOL = "tools/extract_caption_words.py"


class WordFile:
    """Words by caption, in arrays that worker processes share: about 40 bytes a caption.

    Attributes:
        path: the file.
        settings: what words depend on.
        tagger: the tagger that was used, which is not the configured one if that was not installed.
        datasets: names of the data sets that the captions are of.
    """

    def __init__(self, path: Path, head: dict[str, Any], entries: Iterable[tuple[str, Sequence[str]]]):
        self.path = path
        self.settings: dict[str, Any] = head["settings"]
        self.tagger: str = head["tagger"]
        self.datasets: list[str] = head["datasets"]
        numbers: dict[str, int] = {}
        keys, starts, words = [], [0], []
        for caption, of_caption in entries:
            keys.append(_key(caption))
            words.extend(numbers.setdefault(word, len(numbers)) for word in of_caption)
            starts.append(len(words))
        self.vocabulary = tuple(numbers)
        order = np.argsort(np.array(keys, np.uint64), kind="stable")
        self._keys = np.array(keys, np.uint64)[order]
        self._order = order
        self._starts, self._words = np.array(starts, np.int64), np.array(words, np.int32)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __call__(self, caption: str) -> tuple[str, ...]:
        """Return the words of a caption.

        Raises:
            OvsegError: the file does not have it.
        """
        if (entry := self._find(caption)) is None:
            raise self._lacks(caption, "it")
        first, last = self._starts[entry : entry + 2]
        return tuple(self.vocabulary[number] for number in self._words[first:last])

    def check_captions(self, captions: Iterable[str]) -> None:
        """Check that the file has the words of all captions.

        Raises:
            OvsegError: it lacks some.
        """
        missing, count = [], 0
        for caption in captions:
            count += 1
            if caption not in self:
                missing.append(caption)
        if missing:
            raise self._lacks(missing[0], f"{len(missing):,} of {count:,} captions of DATASETS.TRAIN")

    def _find(self, caption: str) -> int | None:
        key = np.uint64(_key(caption))
        place = int(np.searchsorted(self._keys, key))
        return int(self._order[place]) if place < len(self) and self._keys[place] == key else None

    def _lacks(self, caption: str, what: str) -> OvsegError:
        return OvsegError(
            f"INPUT.CAPTION.WORD_FILE {self.path}, made of {', '.join(self.datasets)}, lacks {what}, such as "
            f"{shown(caption)}: make one of the captions of this training by {TOOL}"
        )

    @classmethod
    def read(cls, path: str | Path) -> WordFile:
        """Read a word file.

        Raises:
            OvsegError: it is missing, of another kind, cut off or damaged.
        """
        path = Path(path)
        check_file(path, "word file")
        try:
            with path.open("rb") as file:
                head = json.loads(file.readline())
                if head["caption_words"] != VERSION:
                    raise OvsegError(f"{path} has the format {shown(head['caption_words'])}: make it again by {TOOL}")
                lines = file.read()
            if hashlib.sha256(lines).hexdigest() != head["sha256"]:
                raise OvsegError(f"{path} is cut off or damaged: copy it again, or make it again by {TOOL}")
            rows = (json.loads(line) for line in lines.splitlines())
            return cls(path, head, ((row["caption"], row["words"]) for row in rows))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OvsegError(
                f"{path} is not a word file of captions ({reason_of(error)}): make one by {TOOL}"
            ) from error


def write_word_file(
    path: Path, settings: dict[str, Any], tagger: str, datasets: Sequence[str], parts: Sequence[Path]
) -> int:
    """Join parts, files of lines of :func:`word_lines`, to a word file; return the number of its captions."""
    digest, count = hashlib.sha256(), 0
    for part in parts:
        content = part.read_bytes()
        digest.update(content)
        count += content.count(b"\n")
    head = {"caption_words": VERSION, "settings": settings, "tagger": tagger, "datasets": list(datasets)}
    head |= {"captions": count, "sha256": digest.hexdigest()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        for part in parts:
            file.write(part.read_bytes())
    return count


def word_lines(entries: Iterable[tuple[str, Sequence[str]]]) -> bytes:
    """Return the lines of captions with their words."""
    rows = ({"caption": caption, "words": list(words)} for caption, words in entries)
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _key(caption: str) -> int:
    return int.from_bytes(hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
