"""Tables of text, csv or tsv, whose rows are read when they are asked for: 8 bytes of memory for each row."""

from __future__ import annotations

import contextlib
import copy
import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ovseg.errors import OvsegError
from ovseg.io.files import check_file


class Table:
    """A table of text; it may go to worker processes, and rows may hold line breaks in quotes.

    Rows of ``.tsv`` files are separated by tabs, without quoting; others by commas, or by tabs if the first line has no
    comma.

    Args:
        path: the file, UTF-8.
        header: names of the columns, for a file without a first line of names.

    Attributes:
        columns: their names, from the first line.

    Raises:
        OvsegError: the file cannot be read as a table.
    """

    def __init__(self, path: str | Path, header: Sequence[str] | None = None):
        self.path = Path(path)
        if not os.path.lexists(path):
            raise OvsegError(f"there is no table {path}: check the path")
        if not check_file(self.path, "table").st_size:
            raise OvsegError(f"the table {path} is empty: make or download it again")
        with _explained(self.path), self.path.open("rb") as file:
            first = file.readline().decode("utf-8-sig", "replace")
            file.seek(0)
            tabs = self.path.suffix.lower() == ".tsv" or ("," not in first and "\t" in first)
            self._format = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ","}
            lines = _Lines(file)
            rows = csv.reader(lines, **self._format)
            self.columns = [name.strip() for name in (next(rows, []) if header is None else header)]
            starts, start = array("q"), lines.end
            for row in rows:
                if row:
                    starts.append(start)
                start = lines.end
        self._starts = np.frombuffer(starts, np.int64) if starts else np.empty(0, np.int64)
        self._first = 0  # number of the first row in the file

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, str]:
        """Return a row, by the names of the columns.

        Raises:
            OvsegError: it has another number of columns, or is not UTF-8.
        """
        return next(self.rows(index, index + 1))

    def rows(self, first: int = 0, end: int | None = None, bad: list[str] | None = None) -> Iterator[dict[str, str]]:
        """Yield rows in order; see :meth:`__getitem__`.

        Args:
            first, end: numbers of rows.
            bad: what is wrong with damaged rows is added to it, and they are left out; None raises the error.
        """
        return (row for row in self._rows(first, end, bad) if row is not None)

    def part(self, first: int, end: int) -> Table:
        """Return the table of some of the rows, which a worker process takes at little cost."""
        part = copy.copy(self)
        part._starts, part._first = self._starts[first:end], self._first + first
        return part

    def column(self, name: str, bad: list[str] | None = None) -> Iterator[str]:
        """Yield the cells of a column, one for each row.

        Args:
            name: of the column.
            bad: what is wrong with damaged rows is added to it, and their cells are ""; None raises the error.
        """
        return ("" if row is None else row[name] for row in self._rows(bad=bad))

    def need(self, names: Sequence[str], remedy: str) -> None:
        """Check that the table has columns.

        Raises:
            OvsegError: it lacks one; says what its first line holds, and the remedy.
        """
        if lacking := [name for name in names if name not in self.columns]:
            shown = ", ".join(map(repr, self.columns))[:200] or "nothing"
            what = " and ".join(lacking)
            alone = " alone, since columns are separated by commas or tabs" if len(self.columns) == 1 else ""
            raise OvsegError(f"{self.path} has no column {what}: its first line holds {shown}{alone}; {remedy}")

    def _rows(
        self, first: int = 0, end: int | None = None, bad: list[str] | None = None
    ) -> Iterator[dict[str, str] | None]:
        """Yield rows in order, None for those that are damaged and added to ``bad``."""
        with _explained(self.path), self.path.open("rb") as file:
            for index in range(len(self))[first:end]:
                file.seek(self._starts[index])
                cells = next(csv.reader(_Lines(file), **self._format), [])
                try:
                    row = dict(zip(self.columns, self._checked(index, cells), strict=True))
                except OvsegError as error:
                    if bad is None:
                        raise
                    bad.append(str(error))
                    row = None
                yield row

    def _checked(self, index: int, cells: list[str]) -> list[str]:
        row = f"row {self._first + index + 1} of {self.path}"
        if len(cells) != len(self.columns):
            raise OvsegError(f"{row} has {len(cells)} columns in place of {len(self.columns)}: correct it")
        try:
            "".join(cells).encode()
        except UnicodeEncodeError as error:  # bytes that could not be decoded
            raise OvsegError(f"{row} is not UTF-8: correct it") from error
        return cells


class _Lines:
    """Lines of a file as text; :attr:`end` is where the last one ends."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.end = file.tell()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        begins, self.end = self.end == 0, self.end + len(line)
        text = line.decode("utf-8", "surrogateescape")
        return text.removeprefix("\ufeff") if begins else text


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Explain errors of reading a table."""
    try:
        yield
    except csv.Error as error:
        raise OvsegError(f"{path} is not a table of text ({error}): write it again") from error
    except OSError as error:
        raise OvsegError(f"cannot read {path} ({error.strerror}): check its permissions") from error
