"""Conversion of many files with several threads; what is there and up to date is not touched.

Pillow decodes and encodes outside Python's lock, so threads are as fast as processes. Every file is written under
another name and renamed, so a run that is killed leaves whole files, and the next one continues after them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console

from ovseg.data.file_list import scan
from ovseg.data.prepare.sources import BadFile, raw_labels
from ovseg.data.prepare.stamps import Look, Sign, Stamp, look_at, signs_of
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import atomic_path, remove_leftovers
from ovseg.io.images import save_image
from ovseg.io.progress import progress_bar

MOST_BAD = 20  # bad files after which a run is given up: the archive as a whole is broken
COMPARED = 3  # files of a folder made by others that are compared before anything is written
SAVE_PERIOD = 30.0  # seconds between two savings of the notes
LOSS = 4.0  # mean difference of grey levels that packing as JPEG may make


@dataclass(frozen=True)
class Item:
    """One annotation to convert.

    Attributes:
        name: of its outputs, without suffix; may hold ``/``.
        sources: the files it is made from; when one of them changes, or is newer than an output, that is made again.
            Messages name the first.
        extra: anything that ``read`` needs.
    """

    name: str
    sources: tuple[Path, ...]
    extra: Any = None


@dataclass(frozen=True)
class Output:
    """One folder of files, one for each item.

    Attributes:
        folder: where they go.
        make: (item, what ``read`` gave) -> (H,W) uint8 or uint16 labels, an (H,W,3) uint8 image, the bytes of a
            file, or None where there is to be no file.
        suffix: rest of the names; its end determines the format.
        recipe: changes when the same sources give other files.
    """

    folder: Path
    make: Callable[[Item, Any], np.ndarray | bytes | None]
    suffix: str
    recipe: str

    def path(self, item: Item) -> Path:
        return self.folder / f"{item.name}{self.suffix}"


@dataclass(frozen=True)
class Conversion:
    """Items of one kind and all that is made from them.

    Attributes:
        title: what is converted.
        items: at least one.
        read: does the decoding, once for all outputs.
        outputs: what is made.
        expected: how many items the complete data set has; another number is pointed out.
    """

    title: str
    items: Sequence[Item]
    read: Callable[[Item], Any]
    outputs: Sequence[Output]
    expected: int


def convert(conversion: Conversion, workers: int) -> int:
    """Make the outputs that are missing, made from other sources than are there now, or made by another recipe.

    Shows a progress bar and prints one line of summary. What a file was made from is noted in its folder, and so is an
    output that is left out. A source that looks untouched (size, times, inode) counts as the same; one that does not is
    read, and its content decides. Files that no note knows stay if they are what would be made.

    Args:
        conversion: what to do.
        workers: number of threads; 0 or 1: none.

    Returns:
        Number of files written.

    Raises:
        OvsegError: bad sources, at most :data:`MOST_BAD`, after all others are done; a folder that holds other labels
            made by another program; a folder that cannot be written.
    """
    console = Console()
    folders = [_Folder(output, conversion) for output in conversion.outputs]
    todo = []
    for item in conversion.items:
        looks = _looks(item)
        if due := [folder for folder in folders if not folder.has(item, looks)]:
            todo.append((item, due))
    written, empty, bad = 0, 0, []
    if todo:
        busy = [folder for folder in folders if any(folder in due for _, due in todo)]
        with contextlib.ExitStack() as stack:
            for folder in busy:
                stack.enter_context(folder.stamped())
            bar = stack.enter_context(progress_bar(console=console))
            task = bar.add_task(conversion.title, total=len(todo))
            results = spread(lambda job: _make(conversion, *job), todo, workers)
            for result in stack.enter_context(contextlib.closing(results)):
                bar.advance(task)
                if isinstance(result, BadFile):
                    bad.append(result)
                    if len(bad) >= MOST_BAD:
                        break
                    continue
                for done in result:
                    done.folder.note(done)
                    written, empty = written + done.written, empty + done.empty
    console.print(_summary(conversion, written, empty, len(bad)), soft_wrap=True, highlight=False)
    if bad:
        more = f"; so are {len(bad) - 1} more files, such as {bad[1]}" if len(bad) > 1 else ""
        raise OvsegError(f"{bad[0]}{more}; all else {'was given up' if len(bad) >= MOST_BAD else 'is done'}")
    return written


@dataclass(frozen=True)
class _Done:
    """Result of an item in one folder: its file was written, left out, or right already."""

    folder: _Folder
    name: str
    signs: list[Sign]
    written: bool = False
    empty: bool = False


class _Folder:
    """An output's folder as it was found, and its note."""

    def __init__(self, output: Output, conversion: Conversion):
        self.output = output
        self._files = scan(output.folder, output.suffix, recursive=any("/" in item.name for item in conversion.items))
        self._saved = time.monotonic()
        self._written = False  # whether files changed, so that the note must, too
        self._noted = False  # whether the note has changed
        self.stamp = Stamp.read(output.folder)
        if self.stamp is None:
            if theirs := [item for item in conversion.items if item.name in self._files]:
                self._compare(theirs[:COMPARED], conversion)
            self.stamp = Stamp(output.recipe)
        elif self.stamp.recipe != output.recipe:
            self._files, self.stamp, self._written = {}, Stamp(output.recipe), True

    def has(self, item: Item, looks: list[Look]) -> bool:
        """Return whether an item's file is there, or left out on purpose, and its sources look untouched since."""
        signs = self._known(item)
        return signs is not None and [tuple(sign[1:5]) for sign in signs] == looks

    def is_right(self, item: Item, signs: list[Sign]) -> bool:
        """Return whether the sources have the noted content in spite of their look, and are not newer than the file."""
        known = self._known(item)
        same = known is not None and [sign[5] for sign in known] == [sign[5] for sign in signs]
        return same and not self._is_older(item, signs)

    def holds(self, item: Item, signs: list[Sign], made: np.ndarray | bytes) -> bool:
        """Return whether a file that no note lists, from another program or a killed run, is what would be made."""
        unknown = self._is_whole(item) and item.name not in self.stamp.made
        return unknown and not self._is_older(item, signs) and _holds(self.output.path(item), made)

    def note(self, done: _Done) -> None:
        """Remember what became of an item; save now and then."""
        here, other = (self.stamp.left_out, self.stamp.made)[:: 1 if done.empty else -1]
        here[done.name] = done.signs
        other.pop(done.name, None)
        self._noted = True
        self._written |= done.written or done.empty
        if time.monotonic() - self._saved > SAVE_PERIOD:
            self._save()

    def _known(self, item: Item) -> list[Sign] | None:
        """Return the noted signs of the item's file or absence; None if it has no note."""
        if item.name in self._files:
            return self.stamp.made.get(item.name) if self._is_whole(item) else None
        return self.stamp.left_out.get(item.name)

    def _is_whole(self, item: Item) -> bool:
        return item.name in self._files and self._files[item.name].stat().st_size > 0

    def _is_older(self, item: Item, signs: list[Sign]) -> bool:
        entry = self._files.get(item.name)
        return entry is not None and entry.stat().st_mtime_ns < max(sign[2] for sign in signs)

    def _save(self) -> None:
        self._saved = time.monotonic()
        # a folder that is read only and right needs no note
        with contextlib.nullcontext() if self._written else contextlib.suppress(OvsegError):
            self.stamp.save(self.output.folder)

    def _compare(self, items: Iterable[Item], conversion: Conversion) -> None:
        """Refuse files of other projects, which give the same folders and names to other orders of classes."""
        for item in items:
            path = self.output.path(item)
            ours = self.output.make(item, conversion.read(item))
            if not (path.stat().st_size and isinstance(ours, np.ndarray) and ours.ndim == 2):
                continue
            if not np.array_equal(raw_labels(path), ours):
                raise OvsegError(
                    f"{path} was made by another program and differs from what {item.sources[0]} gives: other "
                    f"projects number the classes in another way; move {path.parent} away and run again"
                )

    @contextlib.contextmanager
    def stamped(self):
        """Remove what killed runs left, and keep the note right even if this run ends early."""
        if self._written:  # by another recipe: none of its files must count as ours
            self._save()
        remove_leftovers(self.output.folder, owned=True, below=True)
        try:
            yield
        finally:
            if self._noted:
                self._save()


def _make(conversion: Conversion, item: Item, folders: Sequence[_Folder]) -> list[_Done] | BadFile:
    try:
        signs = {folder: signs_of(item.sources, folder.output.folder) for folder in folders}
        right = [folder for folder in folders if folder.is_right(item, signs[folder])]
        results = [_Done(folder, item.name, signs[folder]) for folder in right]
        if len(right) == len(folders):
            return results
        content = conversion.read(item)
        for folder in folders:
            if folder in right:
                continue
            path = folder.output.path(item)
            made = folder.output.make(item, content)
            if made is None:
                path.unlink(missing_ok=True)  # of an older source
            elif wrong := not folder.holds(item, signs[folder], made):
                write_file(path, made)
            results.append(_Done(folder, item.name, signs[folder], made is not None and wrong, made is None))
    except BadFile as error:
        return error
    except OSError as error:
        if error.filename not in map(str, item.sources):
            raise
        return BadFile(f"{error.filename} cannot be read ({error.strerror}): unpack its archive again")
    return results


def _holds(path: Path, made: np.ndarray | bytes) -> bool:
    """Return whether a file has this content: equal labels, images but for the loss of compression."""
    if isinstance(made, bytes):
        return path.read_bytes() == made
    try:
        found = raw_labels(path)
    except BadFile:
        return False
    if found.shape != made.shape or found.dtype != made.dtype:
        return False
    if made.ndim == 2:
        return np.array_equal(found, made)
    return np.abs(found.astype(np.int16) - made).mean() < LOSS


def write_file(path: Path, content: np.ndarray | bytes) -> None:
    """Write the bytes, or the labels or image in the format of the suffix, atomically.

    PNG is packed by runs, which for label maps is twice as fast as, and not larger than, Pillow's default.
    """
    with atomic_path(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        elif path.suffix == ".png":
            Image.fromarray(content).save(temporary, compress_level=1, compress_type=Image.RLE)
        elif path.suffix == ".jpg":
            save_image(Image.fromarray(content), temporary, quality=95)
        else:
            save_image(Image.fromarray(content), temporary)


def _looks(item: Item) -> list[Look]:
    looks = []
    for path in item.sources:
        try:
            looks.append(look_at(path))
        except FileNotFoundError as error:
            raise OvsegError(f"{path} is missing: unpack its archive again") from error
        except (OSError, ValueError) as error:
            raise OvsegError(f"{path} cannot be read ({reason_of(error)}): unpack its archive again") from error
    return looks


def _summary(conversion: Conversion, written: int, empty: int, bad: int) -> str:
    total = len(conversion.items)
    text = f"{conversion.title}: {total:,} annotations, "
    text += f"{written:,} files written" if written or empty or bad else "everything is there already"
    if empty:
        text += f", {empty:,} left out (every pixel is ignored)"
    if total != conversion.expected:
        text += f"; ATTENTION: the complete data set has {conversion.expected:,}"
    return text


Job = TypeVar("Job")
Result = TypeVar("Result")


def spread(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Yield results of ``work`` on every job, in any order.

    Only a few jobs wait at a time, so memory does not grow with them. When the consumer stops early (after an error,
    Ctrl-C, or ``close()``), what has begun is finished and nothing else is begun.

    Args:
        work: done in a thread; what it raises is raised here.
        jobs: what to do.
        workers: number of threads; 0 or 1: the work is done right here.
    """
    if workers <= 1:
        yield from map(work, jobs)
        return
    pending: set[Future[Result]] = set()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                pending.add(pool.submit(work, job))
                if len(pending) >= 8 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(cancel_futures=True)
