"""Check of caption files before they are used: unreadable lines, images that are not there."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ovseg.data.caption_files import read_captions
from ovseg.errors import OvsegError

# captions in the released files
RELEASED = {
    "captions_train2017.json": 591_753,
    "captions_val2017.json": 25_014,
    "Train_GCC-training.tsv": 3_318_333,
    "Validation_GCC-1.1.0-Validation.tsv": 15_840,
    "cc12m.tsv": 12_423_374,
}
PAIRS = 10  # partners of each row in OVSegmentor's files
_PAIR_COLUMNS = ("entity", "pairindex", "pairentity")


@dataclass
class CaptionCheck:
    """Content of a file.

    Attributes:
        kind: its format, for display.
        captions: how many it holds, usable or not.
        images: how many images they are of; None where the file lists web addresses.
        released: how many captions the released file of this name has; None if it is not known.
        faults: "where: what is wrong", one each.
    """

    kind: str
    captions: int
    images: int | None
    released: int | None = None
    faults: list[str] = field(default_factory=list)


def check_captions(path: Path, image_root: Path | None = None, need_images: bool = True) -> CaptionCheck:
    """Read a caption file of any known format to its end.

    Formats are those of :func:`ovseg.data.caption_files.read_captions`, the released lists of Conceptual Captions (two
    columns without a header, one of them web addresses), and OVSegmentor's tables with entities and pairs.

    Args:
        path: the file.
        image_root: folder that image names start from; default: for COCO's ``annotations/captions_val2017.json`` the
            folder ``val2017`` next to ``annotations``, else the file's own.
        need_images: an image that is not there is a fault.

    Raises:
        OvsegError: the file is missing, or of no such format as a whole.
    """
    if not path.is_file():
        raise OvsegError(f"there is no captions file {path}")
    suffix = path.suffix.lower()
    try:
        if (columns := _address_columns(path)) is not None:
            check = _check_addresses(path, *columns)
        else:
            usual = path.parent.parent / path.stem.removeprefix("captions_")
            if image_root is None and path.suffix == ".json" and usual.is_dir():
                image_root = usual
            found = read_captions(path, image_root, need_images=need_images)
            kind = {".json": "COCO Captions", ".jsonl": "Localized Narratives"}.get(suffix, "table")
            check = CaptionCheck(kind, found.entries, len(found.images), faults=list(found.bad))
            if suffix == ".csv":
                check.faults += _check_pairs(path, check)
    except OSError as error:
        raise OvsegError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    except csv.Error as error:
        raise OvsegError(f"{path} is not a table of text ({error}): download it again") from error
    check.released = RELEASED.get(path.name)
    return check


def _address_columns(path: Path) -> tuple[str, int] | None:
    """Return format and column of the web addresses if the first line holds one and so is no header."""
    if path.suffix.lower() not in (".tsv", ".txt"):
        return None
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        columns = file.readline().rstrip("\r\n").split("\t")
    addresses = [_is_address(column) for column in columns]
    if addresses == [False, True]:
        return "Conceptual Captions (CC3M)", 1
    if addresses == [True, False]:
        return "Conceptual 12M", 0
    return None


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _check_addresses(path: Path, kind: str, column: int) -> CaptionCheck:
    check = CaptionCheck(kind, 0, None)
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            check.captions += 1
            where = f"line {number} of {path.name}"
            try:
                columns = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError:
                check.faults.append(f"{where}: not UTF-8 text")
                continue
            if len(columns) != 2:
                check.faults.append(f"{where}: {len(columns)} columns instead of 2")
            elif not _is_address(columns[column]):
                check.faults.append(f"{where}: column {column + 1} holds no web address")
            elif not columns[1 - column].strip():
                check.faults.append(f"{where}: the caption is empty")
    return check


def _check_pairs(path: Path, check: CaptionCheck) -> Iterator[str]:
    """Yield faults of OVSegmentor's columns, and write the format to ``check``."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        columns = [name for name in _PAIR_COLUMNS if name in (rows.fieldnames or ())]
        if not columns:
            return
        check.kind = f"OVSegmentor table with {', '.join(columns)}"
        table = [(rows.line_num, *(row.get(name) or "" for name in _PAIR_COLUMNS)) for row in rows]
    entities = [set(entity.split(",")) - {""} for _, entity, _, _ in table]
    for row, (line, _, indices, shared) in enumerate(table):
        where = f"line {line} of {path.name}"
        if not entities[row]:
            yield f"{where}: no entity"
        if "pairindex" in columns and (fault := _pair_fault(indices, shared, row, entities)):
            yield f"{where}: {fault}"


def _pair_fault(indices: str, shared: str, row: int, entities: list[set[str]]) -> str:
    """Return what is wrong with the partners of a row; empty if nothing is."""
    try:
        partners, words = ast.literal_eval(indices), ast.literal_eval(shared)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return "pairindex or pairentity is no list"
    for values, type_ in ((partners, int), (words, str)):
        if (
            not isinstance(values, list)
            or len(values) != PAIRS
            or not all(isinstance(value, type_) for value in values)
        ):
            return f"pairindex and pairentity must be lists of {PAIRS} numbers and words"
    for partner, word in zip(partners, words, strict=True):
        if not 0 <= partner < len(entities):
            return f"pairindex {partner} is no row: there are {len(entities)}"
        if word not in entities[row] & entities[partner]:
            return f"{word!r} is not an entity of both this row and row {partner}"
    return ""
