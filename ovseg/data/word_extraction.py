"""Extraction of the words of all captions of a training to a word file, by several processes, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

from detectron2.config import CfgNode

from ovseg.data.caption_records import captions_in
from ovseg.data.caption_words import TaggedWords, WordSettings
from ovseg.data.loader import training_records
from ovseg.data.word_file import TOOL, word_lines, write_word_file
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path, check_writable, locked_folder
from ovseg.io.progress import progress_bar

logger = logging.getLogger(__name__)

PART = 2000  # captions of a part


def extract_words(cfg: CfgNode, output: str | Path, workers: int = 1) -> tuple[int, str]:
    """Write the words of the captions of ``DATASETS.TRAIN``; see :mod:`ovseg.data.word_file`.

    Parts are kept in ``.<name of the output>.parts``, next to the output, until all are there. A run with other
    captions or settings starts anew.

    Args:
        cfg: the configuration of the training, whose ``INPUT.CAPTION`` says how words are extracted.
        output: the file.
        workers: number of processes.

    Returns:
        number of captions in the file, each text once, and the tagger that was used.

    Raises:
        OvsegError: data sets that are not prepared, no captions, captions that are no list of texts, or an output that
            cannot be written.
    """
    output, settings = Path(output), WordSettings.from_config(cfg)
    check_writable(output)
    sets = zip(cfg.DATASETS.TRAIN, training_records(cfg), strict=True)
    captions = list(dict.fromkeys(text for name, records in sets for one in records for text in captions_in(name, one)))
    if not captions:
        raise OvsegError(f"no image of DATASETS.TRAIN ({', '.join(cfg.DATASETS.TRAIN)}) has captions: add a data set")
    tagger = TaggedWords(settings).tagger  # before processes are started, for its warnings
    digest = hashlib.sha256("\n".join([json.dumps(settings.record()), tagger, *captions]).encode()).hexdigest()[:16]
    folder = output.with_name(f".{output.name}.parts")
    with locked_folder(folder, "choose another --output"):
        for old in set(folder.glob("*.jsonl")) - set(folder.glob(f"{digest}-*.jsonl")):
            old.unlink()
        parts = [folder / f"{digest}-{number:05d}.jsonl" for number in range(-(-len(captions) // PART))]
        missing = [number for number, part in enumerate(parts) if not part.is_file()]
        if len(missing) < len(parts):
            logger.info("%d of %d parts are there already", len(parts) - len(missing), len(parts))
        chunks = [captions[number * PART : (number + 1) * PART] for number in missing]
        _extract_all(settings, [parts[number] for number in missing], chunks, workers)
        count = write_word_file(output, settings.record(), tagger, cfg.DATASETS.TRAIN, parts)
    shutil.rmtree(folder, ignore_errors=True)
    return count, tagger


def _extract_all(settings: WordSettings, parts: Sequence[Path], chunks: Sequence[list[str]], workers: int) -> None:
    with progress_bar(transient=True) as progress:
        task = progress.add_task("captions", total=sum(map(len, chunks)))
        if workers == 1 or len(parts) < 2:
            words = TaggedWords(settings)
            for part, chunk in zip(parts, chunks, strict=True):
                progress.advance(task, _write_part(words, part, chunk))
            return
        start, method = partial(_start, settings), "fork" if "fork" in get_all_start_methods() else "spawn"
        with ProcessPoolExecutor(min(workers, len(parts)), get_context(method), start) as pool:
            try:
                for done in pool.map(_write_part_here, parts, chunks):
                    progress.advance(task, done)
            except BrokenProcessPool as error:
                raise OvsegError(f"a process of {TOOL} was killed: run it again, it continues") from error


def _write_part(words: TaggedWords, part: Path, captions: list[str]) -> int:
    with atomic_path(part) as temporary:
        temporary.write_bytes(word_lines((caption, words(caption)) for caption in captions))
    return len(captions)


_words: TaggedWords | None = None  # of a worker process


def _start(settings: WordSettings) -> None:
    global _words
    logging.disable(logging.WARNING)  # which tagger is used was logged by the main process
    _words = TaggedWords(settings)


def _write_part_here(part: Path, captions: list[str]) -> int:
    return _write_part(_words, part, captions)
