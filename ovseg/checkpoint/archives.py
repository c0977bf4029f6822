"""Readers of the files that ``torch.save`` and TorchScript write: zip archives, and the format before PyTorch 1.6."""

from __future__ import annotations

import contextlib
import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ovseg.checkpoint.pickles import BoundedFile, Call, Damaged, StandIn, read_pickle
from ovseg.checkpoint.stand_ins import StorageKind, stand_in

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MOST_COMPRESSED = 100  # times; torch.save does not compress, and weights cannot be compressed far
_MOST_MODULES, _LONGEST_NAME = 100_000, 1000
_CHUNK = 1 << 22  # bytes
_ALIGNMENT = 64  # bytes, of the tensors of PyTorch and of the members that torch.save writes
_HEADER = struct.Struct("<4s22xHH")  # of a member: its mark, and the lengths of the name and of what follows it


def read_archive(file: BinaryIO, size: int, data: bool = True, mapped: bool = False) -> Any:
    """Return the content of a zip archive of ``torch.save``, or the tensors of a TorchScript one by their names.

    The code in a TorchScript archive is not read.

    Args:
        size: of the file, in bytes.
        data: read the tensors' data. Without them, tensors are on the meta device.
        mapped: map the data into memory instead of copying them, where the archive permits it. Changes of such tensors
            do not reach the file.

    Raises:
        Damaged, NeedsCode: see :func:`ovseg.checkpoint.pickles.read_pickle`.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise Damaged(f"not a complete zip archive: {error}") from error
    infos, storages = archive.infolist(), {}
    roots = [info.filename.removesuffix("data.pkl") for info in infos if info.filename.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Damaged("a zip archive without PyTorch's data.pkl")
    if sum(info.compress_size for info in infos) > size:
        raise Damaged("its members overlap")
    if sum(info.file_size for info in infos) > _MOST_COMPRESSED * size:
        raise Damaged("its members expand further than weights can be compressed")
    members = {info.filename.removeprefix(roots[0]): info for info in infos if info.filename.startswith(roots[0])}
    memory = None
    if data and mapped:
        with contextlib.suppress(OSError):  # a file system without maps, or not enough address space: read it
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)

    def record(name: str, read: bool = True) -> Tensor:
        """Return the bytes of a member, uint8, after comparing them with its checksum; on the meta device if unread."""
        result = torch.empty(members[name].file_size, dtype=torch.uint8, device="cpu" if read else "meta")
        if read:
            view = memoryview(result.numpy())
            with archive.open(members[name]) as member:
                for start in range(0, len(view), _CHUNK):
                    part = view[start : start + _CHUNK]
                    part[:] = member.read(len(part))
        return result

    def storage(identifier: Any) -> Tensor:
        _, kind, key, _, count = _checked(identifier, 5)
        if key not in storages:
            view = None if memory is None else _mapped(memory, members[f"data/{key}"])
            storages[key] = record(f"data/{key}", data) if view is None else view
        values = storages[key].view(kind.dtype)
        if len(values) != count:
            raise Damaged("a storage does not have the declared size")
        return values

    with archive:
        if "byteorder" in members and bytes(record("byteorder").numpy()) != b"little":
            raise Damaged("written by a big-endian machine")
        content = bytes(record("data.pkl").numpy())
        script = "constants.pkl" in members
        content = read_pickle(
            BoundedFile(io.BytesIO(content), len(content)), _script_stand_in if script else stand_in, storage
        )
        return _flattened(content) if script else content


def _mapped(memory: mmap.mmap, info: zipfile.ZipInfo) -> Tensor | None:
    """Return the bytes of a member, uint8, in a private map of its file, after comparing them with its checksum.

    Returns:
        None for a member that is compressed, empty, or not aligned as the tensors of PyTorch.

    Raises:
        Damaged: the member is not complete, or does not have the declared bytes.
    """
    head = memory[info.header_offset : info.header_offset + 30]
    if len(head) < 30 or (parts := _HEADER.unpack(head))[0] != b"PK\3\4":
        raise Damaged("a member does not begin where it should")
    start, count = info.header_offset + 30 + parts[1] + parts[2], info.file_size
    if info.compress_type != zipfile.ZIP_STORED or count != info.compress_size or info.flag_bits & 1:
        return None
    if not count or start % _ALIGNMENT:
        return None
    if start + count > len(memory):
        raise Damaged("it ends too early")
    result = torch.frombuffer(memory, dtype=torch.uint8, count=count, offset=start)
    if zlib.crc32(memoryview(result.numpy())) != info.CRC:
        raise Damaged("a checksum does not match")
    return result


def read_legacy(file: BinaryIO, size: int) -> Any:
    """Return the content of a file in the format before PyTorch 1.6; a nested file may hold a single storage.

    Raises:
        Damaged, NeedsCode: see :func:`ovseg.checkpoint.pickles.read_pickle`.
    """
    storages: dict[str, Tensor] = {}
    source, left = BoundedFile(file, size), size

    def storage(identifier: Any) -> Tensor:
        nonlocal left
        _, kind, key, _, count, view = _checked(identifier, 6)
        if view is not None:
            raise Damaged("it holds a view of a storage")
        if key not in storages:
            left -= count * kind.dtype.itemsize
            if left < 0:
                raise Damaged("it ends too early")
            storages[key] = torch.empty(count, dtype=kind.dtype)
        return storages[key]

    for _ in ("magic number", "version", "machine"):
        read_pickle(source, stand_in)
    content = read_pickle(source, stand_in, storage)
    keys = read_pickle(source, stand_in)
    if set(keys) != storages.keys():
        raise Damaged("its list of storages does not match its tensors")
    for data in map(storages.get, keys):
        if file.read(8) != struct.pack("<q", len(data)):
            raise Damaged("a storage does not have the declared size")
        if len(data) and file.readinto(memoryview(data.view(torch.uint8).numpy())) != data.nbytes:
            raise Damaged("it ends too early")
    return content


def read_plain(file: BinaryIO, size: int) -> Any:
    """Return the content of a plain pickle with arrays, or with tensors whose storages are nested files.

    Raises:
        Damaged, NeedsCode: see :func:`ovseg.checkpoint.pickles.read_pickle`.
    """
    nested = Call(lambda content: read_legacy(io.BytesIO(content), len(content)))
    return read_pickle(
        BoundedFile(file, size), lambda name: nested if name == "torch.storage._load_from_bytes" else stand_in(name)
    )


def _checked(identifier: Any, parts: int) -> tuple:
    kinds = (str, StorageKind, str, object, int)
    valid = type(identifier) is tuple and len(identifier) == parts and all(map(isinstance, identifier, kinds))
    if not valid or identifier[0] != "storage" or identifier[4] < 0:
        raise Damaged("it refers to something that is not a storage")
    return identifier


def _script_stand_in(name: str) -> Any:
    if name.startswith("__torch__."):
        return Call(lambda *_: StandIn(_Module))
    if name.startswith("torch.jit._pickle."):  # lists, and values with a note of their type
        return Call(lambda value, *_: value)
    return stand_in(name)


@dataclass
class _Module:
    """Attributes of a module in a TorchScript archive."""

    attributes: Any


def _flattened(module: Any) -> dict[str, Tensor]:
    """Return the tensors of a module and its submodules under their names in a state dict."""
    if not isinstance(module, _Module):
        raise Damaged("a TorchScript archive without a module")
    tensors, todo, count = {}, [("", module)], 0
    while todo:
        prefix, module = todo.pop()
        count += 1
        if count > _MOST_MODULES or len(prefix) > _LONGEST_NAME:
            raise Damaged("its modules contain each other")
        if not isinstance(module.attributes, Mapping):
            raise Damaged("a module has no attributes")
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                todo.append((f"{prefix}{name}.", value))
    return tensors
