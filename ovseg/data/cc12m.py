"""Preparation of CC12M for OVSegmentor: filter, merge, pairs of rows with a shared entity, shards (specification 7.1).

Every file appears whole or not at all, and is the same whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ovseg.data.image_text_shards import write_shard
from ovseg.data.shared_entities import SharedEntities, split_entities
from ovseg.data.tables import Table
from ovseg.errors import OvsegError, reason_of, shown
from ovseg.io.cpus import usable_cpus
from ovseg.io.files import atomic_path, check_file, write_text
from ovseg.vocabulary.entities import filter_entities

logger = logging.getLogger(__name__)

COLUMNS = ("image_id", "caption")
MERGED = "cc12m_filtered_subset.csv"
PAIRS_OF_A_ROW = 10
ROWS_OF_A_SHARD = 10_000
RECORD = "filter.json"  # what the parts of a folder were made of
_PART = re.compile(r"cc12m_(\d+)\.csv")
_ADDRESS = re.compile(r"[a-z]+://", re.IGNORECASE)
_CHUNK = 65_536  # rows whose pairs are drawn at a time

Job, Result = TypeVar("Job"), TypeVar("Result")


def filter_captions(source: Path, folder: Path | None = None, processes: int = 1) -> list[Path]:
    """Write the rows whose captions have an entity, in parts ``cc12m_<number>.csv``, with a column ``entity``.

    The first two columns are taken as ``image_id`` and ``caption``, whatever they are called. A first line with an
    address, as in the released ``cc12m.tsv``, is a row. Parts of the same source that are there are kept.

    Args:
        source: csv or tsv.
        folder: of the parts; default: ``subsets`` next to the source.
        processes: number of parts; as many processes work, or as there are CPUs.

    Returns:
        the parts.

    Raises:
        OvsegError: the source is no table of two columns, or the folder holds parts of another source.
    """
    table = open_captions(source)
    folder = source.absolute().parent / "subsets" if folder is None else folder
    look = source.stat()
    record = {"source": source.name, "size": look.st_size, "changed": look.st_mtime_ns, "parts": processes}
    if (found := _read_record(folder)) not in (None, record):
        raise OvsegError(
            f"{folder} holds parts of another run (of {found.get('source')} in {found['parts']} parts): give another "
            "folder as --dstdir, or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECORD, json.dumps(record))
    bounds = np.linspace(0, len(table), processes + 1).astype(int).tolist()
    paths = [folder / f"cc12m_{number}.csv" for number in range(processes)]
    jobs = [
        (path, table.part(first, end))
        for path, first, end in zip(paths, bounds, bounds[1:], strict=False)
        if not path.is_file()
    ]
    filter_entities("a dog")  # imports the tokenizer once for all processes, which takes a second
    for (path, part), (kept, bad) in zip(jobs, _spread(_filter_part, jobs, processes), strict=True):
        logger.info("%s: %d of %d rows have entities", path, kept, len(part))
        _report(bad)
    return paths


def open_captions(source: Path) -> Table:
    """Return a table whose first two columns are called ``image_id`` and ``caption``.

    Raises:
        OvsegError: it has one column.
    """
    table = Table(source)
    if len(table.columns) < 2:
        raise OvsegError(f"{source} has one column ({shown(table.columns[0])}): give a table of images and captions")
    has_header = not any(_ADDRESS.match(name) for name in table.columns[:2])
    if has_header and set(COLUMNS) <= set(table.columns):
        return table
    header = [*COLUMNS, *(f"column_{number}" for number in range(2, len(table.columns)))]
    if has_header:
        table.columns = header
        return table
    return Table(source, header)


def _filter_part(job: tuple[Path, Table]) -> tuple[int, list[str]]:
    path, table = job
    kept, bad = 0, []
    with atomic_path(path) as temporary, _rows_to(temporary, (*COLUMNS, "entity")) as write:
        for row in table.rows(bad=bad):
            if entities := filter_entities(row["caption"]):
                write([row["image_id"], row["caption"], ",".join(entities)])
                kept += 1
    return kept, bad


def merge_parts(folder: Path, remove: bool = False) -> Path:
    """Join the tables of a folder, in the order of their numbers, to :data:`MERGED` in the same folder.

    Args:
        folder: of the parts.
        remove: delete the parts, after the result is written.

    Raises:
        OvsegError: there are none, a filter has not finished, or their columns differ.
    """
    parts = sorted((path for path in folder.glob("*.csv") if _PART.fullmatch(path.name)), key=_number)
    others = sorted(
        path for path in folder.glob("*.csv") if path not in parts and not path.name.startswith(Path(MERGED).stem)
    )
    record, target = _read_record(folder), folder / MERGED
    numbers = set(map(_number, parts))
    wanted = set(range(record["parts"] if record else max(numbers, default=-1) + 1))
    if not parts and not others:
        raise OvsegError(f"{folder} has no parts cc12m_<number>.csv: run --mode filter, or name its folder as --dstdir")
    if lacking := sorted(wanted - numbers):
        raise OvsegError(
            f"{folder} has {len(parts)} parts, but not cc12m_{lacking[0]}.csv: run --mode filter again, which makes it"
        )
    if foreign := sorted(numbers - wanted):
        raise OvsegError(f"{folder}/cc12m_{foreign[0]}.csv is a part of another filter: take it out of the folder")
    tables = [Table(path) for path in (*parts, *others)]
    for table in tables:
        if table.columns != tables[0].columns:
            raise OvsegError(
                f"the columns of {table.path} are not those of {tables[0].path}: take it out of the folder"
            )
    with atomic_path(target) as temporary, _rows_to(temporary, tables[0].columns) as write:
        for table in tables:
            for row in table.rows():
                write(list(row.values()))
    logger.info("%d rows of %d parts in %s", sum(map(len, tables)), len(tables), target)
    if remove:
        for path in (*parts, folder / RECORD):
            path.unlink(missing_ok=True)
    return target


def make_pairs(metafile: Path, seed: int = 0) -> Path:
    """Write a table again, as ``<name>_pair.csv``, with ten rows that share an entity with each row.

    For each pair an entity of the row is drawn, then a row that has it, perhaps the row itself. ``pairindex`` holds the
    numbers of these rows, from 0, and ``pairentity`` the entities, both as Python lists. A table whose rows are sorted
    or selected afterwards needs new pairs. Damaged rows are left out, and counted in the log.

    Raises:
        OvsegError: the table has no column ``entity``, or a row has no entity.
    """
    table = Table(metafile)
    table.need(["entity"], "make it by --mode filter and --mode merge")
    bad: list[str] = []
    shared = SharedEntities(_entities(table, bad))
    _report(bad)
    rng, target = np.random.default_rng(seed), metafile.with_name(f"{metafile.stem}_pair.csv")
    columns = [name for name in table.columns if name not in ("pairindex", "pairentity")]
    with atomic_path(target) as temporary, _rows_to(temporary, [*columns, "pairindex", "pairentity"]) as write:
        kept = table.rows(bad=[])
        for first in range(0, len(shared), _CHUNK):
            numbers = np.arange(first, min(first + _CHUNK, len(shared)))
            rows, entities = shared.draw_many(numbers, PAIRS_OF_A_ROW, rng)
            for index, entity, cells in zip(rows.tolist(), entities, kept, strict=False):  # kept is the longest
                write([*(cells[name] for name in columns), index, [shared.names[number] for number in entity]])
    logger.info("pairs of %d rows in %s", len(shared), target)
    return target


def _entities(table: Table, bad: list[str]) -> Iterator[list[str]]:
    for number, row in enumerate(table.rows(bad=bad), 1):
        if not (entities := split_entities(row["entity"])):
            raise OvsegError(f"row {number + len(bad)} of {table.path} has no entity: run --mode filter again")
        yield entities


def json_to_csv(source: Path, folder: Path | None = None) -> Path:
    """Write JSON lines as a table, ``<name>.csv``, with a first column without a name that counts rows from 0.

    Args:
        source: a JSON object in each line.
        folder: of the table; default: that of the source.

    Raises:
        OvsegError: a line is no JSON object.
    """
    columns: dict[str, None] = {}
    for row in _json_lines(source):
        columns |= dict.fromkeys(row)
    target = (source.parent if folder is None else folder) / f"{source.stem}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary, _rows_to(temporary, ["", *columns]) as write:
        for number, row in enumerate(_json_lines(source)):
            write([number, *(row.get(name, "") for name in columns)])
    return target


def make_shards(metafile: Path, images: Path, folder: Path, processes: int = 1) -> list[Path]:
    """Write the images and captions of a table as WebDataset shards ``cc12m-<number>.tar``; whole ones are kept.

    Rows that are damaged or whose image is missing are left out, and counted. Partners of rows are drawn by the
    entities that shards hold.

    Raises:
        OvsegError: the table lacks the columns image_id and caption, or no image is found.
    """
    table = Table(metafile)
    table.need(COLUMNS, "give a table of --mode filter")
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(table), ROWS_OF_A_SHARD)
    paths = [folder / f"cc12m-{number:05d}.tar" for number in range(len(starts))]
    jobs = [
        (path, start, table.part(start, start + ROWS_OF_A_SHARD))
        for path, start in zip(paths, starts, strict=True)
        if not path.is_file()
    ]
    written, lacking, damaged = 0, [], []
    for done, without, bad in _spread(partial(_write_shard, images), jobs, processes):
        written, lacking, damaged = written + done, lacking + without, damaged + bad
    _report(damaged)
    if lacking and not written:
        raise OvsegError(f"there is none of the images of {metafile} in {images}, such as {lacking[0]}: give --imgdir")
    logger.info("%d samples written to %s, %d images are missing", written, folder, len(lacking))
    return paths


def _write_shard(images: Path, job: tuple[Path, int, Table]) -> tuple[int, list[str], list[str]]:
    path, start, table = job
    bad: list[str] = []
    rows = (
        (number + len(bad), images / row["image_id"], row["caption"], split_entities(row.get("entity", "")))
        for number, row in enumerate(table.rows(bad=bad), start)
    )
    return *write_shard(path, rows), bad


def _report(bad: Sequence[str]) -> None:
    """Log how many rows are damaged."""
    if bad:
        logger.warning("%d rows are damaged and left out, such as: %s", len(bad), bad[0])


def _number(path: Path) -> int:
    return int(_PART.fullmatch(path.name)[1])


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) and isinstance(found.get("parts"), int) else None


def _json_lines(source: Path) -> Iterator[dict[str, Any]]:
    check_file(source, "file of JSON lines")
    with source.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it is {shown(row)}")
            except (ValueError, RecursionError) as error:
                raise OvsegError(
                    f"line {number} of {source} is no JSON object ({reason_of(error)}): correct it"
                ) from error
            yield row


@contextlib.contextmanager
def _rows_to(path: Path, header: Sequence[str]) -> Iterator[Callable[[Sequence[Any]], Any]]:
    """Write a csv file with a header; yield the function that writes a row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(header)
        yield write


def _spread(work: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterable[Result]:
    """Yield the results of jobs in order, by up to so many processes."""
    workers = min(processes, usable_cpus(), len(jobs))
    if workers <= 1:
        yield from map(work, jobs)
        return
    method = "fork" if "fork" in get_all_start_methods() else "spawn"  # a spawned process imports for seconds
    with ProcessPoolExecutor(workers, get_context(method)) as pool:
        try:
            yield from pool.map(work, jobs)
        except BrokenProcessPool as error:
            raise OvsegError("a process was killed: run the command again, it continues") from error
