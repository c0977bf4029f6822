"""Pickles that no program writes: mutations of real ones, and operations on every name that the reader knows."""

from __future__ import annotations

import io
import itertools
import pickle
import random
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ovseg.checkpoint.archives import LEGACY_MAGIC
from ovseg.checkpoint.stand_ins import STAND_INS
from tests.fuzz.mutate import mutate_bytes

WAS_RUN = "was_run"  # what the code in these pickles makes in the current folder
_INT64 = 2**62
# Pickled values for arguments and states, most of them wrong.
VALUES = (
    b"N",
    b")",
    b"]",
    b"}",
    b"K\x03",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08" + _INT64.to_bytes(8, "little"),
    b"X\x02\x00\x00\x00f4",
    b"X\x02\x00\x00\x00O8",
    b"C\x04abcd",
    b"\x8e\x00\x00\x00\x00\x00\x01\x00\x00",  # BINBYTES8 of 1 TiB
    b"\x96\x00\x00\x00\x00\x00\x01\x00\x00",  # BYTEARRAY8 of 1 TiB
    b"K\x03\x85",
    b"\x8a\x08" + _INT64.to_bytes(8, "little") + b"\x85",
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t",
    b"(K\x01K\x02\x85cnumpy\ndtype\n\x89C\x08aaaaaaaat",
    b"}X\x09\x00\x00\x00__class__cnumpy\nndarray\ns",
    b"X\x03\x00\x00\x00cpuK\x00\x86",
)


def seeds() -> list[bytes]:
    """Small whole files of every format, with tensors, arrays and settings."""
    tensors = {"a.w": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}
    arrays = {"w": np.arange(4, dtype=np.float32), "f": np.asfortranarray(np.ones((2, 2))), "s": np.float64(2)}
    index = {"filename": np.array(["a.jpg"], object), "folder": ["x"]}  # ADE20K's
    contents = ({"model": tensors}, {"model": arrays}, index)
    found = [pickle.dumps(content, protocol) for content in contents for protocol in (0, 2, 4, 5)]
    for new in (True, False):
        file = io.BytesIO()
        torch.save({"model": tensors, "iteration": 3}, file, _use_new_zipfile_serialization=new)
        found.append(file.getvalue())
    return found


def mutations(count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` files, see :func:`mutated`."""
    draw, whole = random.Random(seed), seeds()
    for index in range(count):
        yield mutated(draw, whole[index % len(whole)], whole)


def mutated(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A file with some bytes changed, removed, repeated, or from others; every second archive has right checksums."""
    if content.startswith(b"PK") and draw.random() < 0.5:
        return _rezipped(content, lambda data: mutate_bytes(draw, data, others))
    return mutate_bytes(draw, content, others)


def crafted() -> Iterator[bytes]:
    """REDUCE, NEWOBJ and BUILD on every name, with every value; bombs; and names that run code."""
    names = [*STAND_INS, "os.system", "builtins.eval", "builtins.getattr", "copyreg._reconstructor", "numpy.load"]
    for name in names:
        module, _, leaf = name.rpartition(".")
        known = b"\x80\x04c" + module.encode() + b"\n" + leaf.encode() + b"\n"
        for value in VALUES:
            yield known + value + b"\x85R."
            yield known + value + b"\x85\x81."
            yield known + value + b"b."
            yield known + b")R" + value + b"b."
            yield known + b"X\x02\x00\x00\x00f4\x85R" + value + b"b."
            yield b"\x80\x04}X\x05\x00\x00\x00model" + known[2:] + value + value + b"\x86Rs."
        for first, second in itertools.product(VALUES[::2], VALUES[::3]):
            yield known + b"(" + first + second + b"K\x00tR" + first + b"b."
    deep = 300_000
    yield b"\x80\x04}N" + b"\x85" * deep + b"Ns."  # a deep tuple as a key
    yield b"\x80\x04" + b"]" * deep + b"a" * (deep - 1) + b"."
    yield b"\x80\x04(" + b"}" * 20_000_000 + b"l."
    yield b"\x80\x04K\x01" + b"2\x86q\x00h\x00" * 1000 + b"."  # each tuple holds the one before twice
    yield b"\x80\x04Nr\xff\xff\xff\xff."
    yield b"\x80\x04X\x01\x00\x00\x00a" + b"I" + b"9" * 100_000 + b"\n."
    yield b"\x80\x04}q\x00X\x05\x00\x00\x00modelh\x00s."  # contains itself
    text = b"X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"q\x00X\x06\x00\x00\x00latin1q\x01"
    yield b"\x80\x04(" + text + b"c_codecs\nencode\nh\x00h\x01\x86R" * 5000 + b"l."  # 5 GB of copies
    for code in (_evil("os", "mkdir", WAS_RUN), _evil("builtins", "exec", f"open({WAS_RUN!r}, 'w')")):
        yield from (code, LEGACY_MAGIC + code * 4, _archive(code), _archive(code, script=True))
    for offset, size, stride in ((0, 2**40, 1), (2**40, 1, 1), (0, 2, 2**61), (0, 2**40, 0), (-1, 1, 1), (0, 1, -1)):
        yield _archive(_tensor(4, offset, size, stride))
    yield _archive(_tensor(2**40, 0, 4, 1))
    yield _archive(_tensor(4, 0, 4, 1), bomb=True)


def write(content: bytes, folder: Path) -> Path:
    """Put a content into a file whose suffix says little."""
    path = folder / ("crafted.pth" if len(content) % 2 else "crafted.pkl")
    path.write_bytes(content)
    return path


def _rezipped(content: bytes, change) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(output, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith("data.pkl") else data)
    return output.getvalue()


def _archive(pickled: bytes, *, script: bool = False, bomb: bool = False) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(200_000_000 if bomb else 16))
        if script:
            archive.writestr("archive/constants.pkl", b"\x80\x02).")
            archive.writestr("archive/code/evil.py", b"import os")
    return output.getvalue()


def _tensor(numel: int, offset: int, size: int, stride: int) -> bytes:
    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(numel)
    rest = number(offset) + number(size) + b"\x85" + number(stride) + b"\x85\x89)"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + rest + b"tRs."


def _evil(module: str, name: str, argument: str) -> bytes:
    text = argument.encode()
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + len(text).to_bytes(4, "little") + text + b"\x85R."
