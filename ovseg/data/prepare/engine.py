"""Converting many files with several threads; what is there and up to date is not touched.

Threads, not processes: Pillow decodes and encodes outside Python's lock, which measures as fast as processes, and a
process would import the whole package again. Every file is written under another name and renamed, so a run that is
killed leaves whole files, and the next one goes on after them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from ovseg.data.prepare.leftovers import remove_leftovers
from ovseg.data.prepare.sources import BadFile, raw_labels, scan
from ovseg.data.prepare.stamps import Stamp
from ovseg.data.prepare.threads import spread
from ovseg.errors import OvsegError
from ovseg.files import atomic_path
from ovseg.progress import progress_bar

MOST_BAD = 20  # bad files after which a run is given up: the archive as a whole is broken
COMPARED = 3  # files of a folder made by others that are compared with what we would make


@dataclass(frozen=True)
class Item:
    """One annotation to convert.

    Attributes:
        name: of its outputs, without suffix; may hold ``/``.
        sources: the files it is made from; an output older than one of them is made again. Messages name the first.
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
        make: (item, what ``read`` gave) -> (H,W) uint8 or uint16 labels, an (H,W,3) uint8 picture, the bytes of a
            file, or None where there is to be no file.
        suffix: rest of the names; its end tells the format.
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
    """Make the outputs that are missing, older than their sources, or made by another recipe.

    Shows a progress bar and prints one line of summary. An output that is left out is noted in its folder, so that it
    is not tried again.

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
        sign = _sign(item)
        if due := [folder for folder in folders if not folder.has(item, sign)]:
            todo.append((item, sign, due))
    written, empty, bad = 0, 0, []
    if todo:
        busy = [folder for folder in folders if any(folder in due for _, _, due in todo)]
        with contextlib.ExitStack() as stack:
            for folder in busy:
                stack.enter_context(folder.stamped())
            bar = stack.enter_context(progress_bar(console=console))
            task = bar.add_task(conversion.title, total=len(todo))
            results = spread(lambda job: _make(conversion, *job), todo, workers)
            for result in stack.enter_context(contextlib.closing(results)):
                if isinstance(result, BadFile):
                    bad.append(result)
                    if len(bad) >= MOST_BAD:
                        break
                else:
                    written, empty = written + result[0], empty + result[1]
                bar.advance(task)
    console.print(_summary(conversion, len(todo), written, empty), soft_wrap=True, highlight=False)
    if bad:
        more = f"; so are {len(bad) - 1} more files, such as {bad[1]}" if len(bad) > 1 else ""
        raise OvsegError(f"{bad[0]}{more}; all else {'was given up' if len(bad) >= MOST_BAD else 'is done'}")
    return written


class _Folder:
    """An output's folder as it was found, and its note."""

    def __init__(self, output: Output, conversion: Conversion):
        self.output = output
        self._files = scan(output.folder, output.suffix, recursive=any("/" in item.name for item in conversion.items))
        self.stamp = Stamp.read(output.folder)
        if self.stamp is None:
            if theirs := [item for item in conversion.items if item.name in self._files]:
                self._compare(theirs[:COMPARED], conversion)
            self.stamp = Stamp(output.recipe)
        elif self.stamp.recipe != output.recipe:
            self._files, self.stamp = {}, Stamp(output.recipe)

    def has(self, item: Item, sign: list[int]) -> bool:
        """Whether the item's file is there and up to date, or is left out on purpose."""
        if (entry := self._files.get(item.name)) is None:
            return self.stamp.left_out.get(item.name) == sign
        found = entry.stat()
        return found.st_size > 0 and found.st_mtime_ns >= sign[1]

    def _compare(self, items: Iterable[Item], conversion: Conversion) -> None:
        """Other projects give the same folders and names to other orders of classes: do not mix with theirs."""
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
        """The folder, cleaned of what killed runs left, with a note that is right even if this run ends early."""
        self.stamp.save(self.output.folder)
        remove_leftovers(self.output.folder)
        before = dict(self.stamp.left_out)
        try:
            yield
        finally:
            if self.stamp.left_out != before:
                self.stamp.save(self.output.folder)


def _make(conversion: Conversion, item: Item, sign: list[int], folders: Sequence[_Folder]) -> tuple[int, int] | BadFile:
    """Do one item; returns the numbers of files written and left out."""
    written = empty = 0
    try:
        content = conversion.read(item)
        for folder in folders:
            path = folder.output.path(item)
            made = folder.output.make(item, content)
            if made is None:
                path.unlink(missing_ok=True)  # of an older source
                folder.stamp.left_out[item.name] = sign
                empty += 1
            else:
                write_file(path, made)
                folder.stamp.left_out.pop(item.name, None)
                written += 1
    except BadFile as error:
        return error
    return written, empty


def write_file(path: Path, content: np.ndarray | bytes) -> None:
    """Write the bytes, or the labels or picture in the format of the suffix, atomically.

    PNG is packed by runs, which for label maps is twice as fast as, and not larger than, Pillow's default.
    """
    with atomic_path(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        elif path.suffix == ".png":
            Image.fromarray(content).save(temporary, compress_level=1, compress_type=Image.RLE)
        elif path.suffix == ".jpg":
            Image.fromarray(content).save(temporary, quality=95)
        else:
            Image.fromarray(content).save(temporary)


def _sign(item: Item) -> list[int]:
    """Bytes and time of change, in ns, of an item's sources."""
    try:
        found = [os.stat(path) for path in item.sources]
    except FileNotFoundError as error:
        raise OvsegError(f"{error.filename} is missing: unpack its archive again") from error
    return [sum(entry.st_size for entry in found), max(entry.st_mtime_ns for entry in found)]


def _summary(conversion: Conversion, due: int, written: int, empty: int) -> str:
    total = len(conversion.items)
    text = f"{conversion.title}: {total:,} annotations, "
    text += f"{written:,} files written" if due else "everything is there already"
    if empty:
        text += f", {empty:,} left out (every pixel is ignored)"
    if total != conversion.expected:
        text += f"; ATTENTION: the complete data set has {conversion.expected:,}"
    return text
