"""Pickles written by hand: every name that a reader knows, and many that it must not, with every opcode."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch

from ovseg.data.prepare.ade20k_index import read_index
from ovseg.errors import OvsegError
from ovseg.state_dicts import read_checkpoint, read_state_dict
from tests.fuzz.mutate import mutate_bytes

_KNOWN = (  # module:name
    "numpy:dtype numpy:ndarray numpy.core.multiarray:_reconstruct numpy._core.multiarray:_reconstruct "
    "numpy.core.multiarray:scalar numpy._core.multiarray:scalar numpy.core.numeric:_frombuffer "
    "numpy._core.numeric:_frombuffer _codecs:encode collections:OrderedDict torch._utils:_rebuild_tensor_v2 "
    "torch._utils:_rebuild_parameter torch.storage:_load_from_bytes torch:FloatStorage torch:Size torch:device"
)
_FORBIDDEN = (
    "os:system posix:system nt:system os:popen subprocess:Popen builtins:eval builtins:exec builtins:__import__ "
    "builtins:getattr builtins:print builtins:bytearray pty:spawn importlib:import_module runpy:run_path shutil:rmtree "
    "operator:attrgetter functools:partial copyreg:_reconstructor io:open ctypes:CDLL pickle:loads numpy:load "
    "numpy:fromfile numpy:memmap numpy:dtype.__reduce__ numpy:ndarray.tofile numpy:os.system torch:load torch.hub:load "
    "numpy.f2py.crackfortran:myeval collections:OrderedDict.__init__ __main__:x :"
)
KNOWN, FORBIDDEN = _KNOWN.split(), _FORBIDDEN.split()
_DTYPES = "f4 <f4 >f8 i8 u1 b1 O O8 V16 S3 U2 M8[ns] c8 f2 i4,f8 x O,i4".split()  # noqa: SIM905
_CANARY = "canary"
_COMMAND = f"touch {_CANARY}"


class _Writer:
    """Opcodes of a random object, a few levels deep; nothing is ever built here."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.memo = rng, 0

    def text(self, text: str) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data

    def data(self, data: bytes) -> bytes:
        return b"B" + struct.pack("<I", len(data)) + data

    def number(self, number: int) -> bytes:
        return b"I%d\n" % number

    def tuple(self, *items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    def name(self, what: str) -> bytes:
        module, name = what.split(":")
        if self.rng.random() < 0.5 and module and name:
            return b"c" + module.encode() + b"\n" + name.encode() + b"\n"
        return self.text(module) + self.text(name) + b"\x93"

    def known(self) -> bytes:
        return self.name(self.rng.choice(KNOWN))

    def forbidden(self) -> bytes:
        target = self.name(self.rng.choice(FORBIDDEN))
        return (
            target + self.tuple(self.text(self.rng.choice((_COMMAND, f"__import__('os').system('{_COMMAND}')")))) + b"R"
        )

    def dtype(self) -> bytes:
        made = self.name("numpy:dtype") + self.tuple(self.text(self.rng.choice(_DTYPES)), b"I00\n", b"I01\n") + b"R"
        return made + (self.dtype_state() + b"b" if self.rng.random() < 0.6 else b"")

    def dtype_state(self) -> bytes:
        """A state such as numpy.dtype's, its sizes, fields and flags chosen by the file."""
        rng, sizes = self.rng, (-1, 0, 1, 4, 8, 2**20, 2**31 - 1, -(2**31))
        names = self.tuple(*(self.text(name) for name in "ab"[: rng.randint(0, 2)])) if rng.random() < 0.4 else b"N"
        fields = b"N"
        if rng.random() < 0.4:
            offset = self.number(rng.choice((0, 8, -8, 2**30, -(2**30))))
            inner = self.dtype() if rng.random() < 0.5 else self.name("numpy:dtype") + self.tuple(self.text("O")) + b"R"
            fields = b"}" + self.text("a") + self.tuple(inner, offset) + b"s"
        inner = self.tuple(self.name("numpy:dtype") + self.tuple(self.text("O")) + b"R", self.tuple(self.number(2)))
        parts = [
            self.number(rng.choice((3, 4, 0))),
            self.text(rng.choice(("<", "|", ">", "x"))),
            rng.choice((b"N", b"N", inner)),
        ]
        parts += [
            names,
            fields,
            *(self.number(rng.choice(sizes)) for _ in range(2)),
            self.number(rng.choice((0, 1, 63, 127))),
        ]
        return self.tuple(*parts[: rng.choice((8, 8, 8, 7, 3))], *((self.any(2),) if rng.random() < 0.1 else ()))

    def array(self) -> bytes:
        rng, module = self.rng, self.rng.choice(("numpy.core.multiarray", "numpy._core.multiarray"))
        content = self.data(rng.randbytes(rng.choice((0, 4, 16, 64))))
        if rng.random() < 0.3:
            return self.name(f"{module}:scalar") + self.tuple(self.dtype(), content) + b"R"
        shape = self.tuple(*(self.number(rng.choice((0, 1, 2, 4, 2**31, -1))) for _ in range(rng.randint(0, 3))))
        if rng.random() < 0.2:
            numeric = module.replace("multiarray", "numeric")
            return self.name(f"{numeric}:_frombuffer") + self.tuple(content, self.dtype(), shape, self.text("C")) + b"R"
        empty = self.tuple(
            self.name(rng.choice(("numpy:ndarray", "numpy:ndarray", "numpy:dtype"))),
            self.tuple(self.number(0)),
            self.data(b"b"),
        )
        objects = b"](" + self.any(2) + b"e"
        state = self.tuple(self.number(1), shape, self.dtype(), b"I00\n", rng.choice((content, content, objects)))
        return self.name(f"{module}:_reconstruct") + empty + b"R" + state + b"b"

    def tensor(self) -> bytes:
        """torch's rebuilding function with a storage from bytes, or from something else."""
        inner = self.rng.choice((self.data(b"PK"), self.array(), self.any(2)))
        storage = self.name("torch.storage:_load_from_bytes") + self.tuple(inner) + b"R"
        sizes = self.tuple(self.number(self.rng.choice((0, 2, 2**40, -1))))
        rest = (self.number(self.rng.choice((0, 5, -1))), sizes, sizes, b"I00\n", self.any(2))
        return self.name("torch._utils:_rebuild_tensor_v2") + self.tuple(storage, *rest) + b"R"

    def call(self, depth: int) -> bytes:
        """A known name, or any object, called, made anew, or given a state."""
        rng, what = self.rng, self.known()
        arguments = self.tuple(*(self.any(depth + 1) for _ in range(rng.randint(0, 4))))
        made = rng.choice(
            (
                what + arguments + b"R",
                what + arguments + b"\x81",
                what + arguments + b"}" + b"\x92",
                what + arguments + b"R" + self.any(depth + 1) + b"b",
                what + self.any(depth + 1) + b"b",
                b"(" + what + self.any(depth + 1) + b"o",
                b"(" + self.any(depth + 1) + b"i" + rng.choice(KNOWN + FORBIDDEN).replace(":", "\n").encode() + b"\n",
            )
        )
        return made

    def any(self, depth: int = 0) -> bytes:
        rng = self.rng
        if depth > 3 or rng.random() < 0.3:
            plain = (
                b"N",
                b"\x88",
                b"K\x07",
                b"]",
                b"}",
                b")",
                self.number(rng.choice((-1, 2**40))),
                self.text("latin1"),
            )
            return rng.choice(
                (*plain, self.text("f4"), self.data(b"1234"), b"\x82\x01", b"Pid\n", b"h\x00", b"G" + bytes(8))
            )
        kind = rng.randrange(10)
        if kind < 6:
            make = (self.array, self.dtype, self.tensor, self.known, self.forbidden, self.dtype_state)[kind]
            return make()
        if kind == 6:
            return b"}(" + b"".join(self.any(depth + 1) for _ in range(2 * rng.randint(0, 2))) + b"u"
        return self.tuple(self.any(depth + 1), self.any(depth + 1)) if kind == 7 else self.call(depth)

    def file(self) -> bytes:
        entries = b"".join(self.text(f"w{n}") + self.any() for n in range(self.rng.randint(1, 3)))
        names = b"".join(self.text(name) + self.any() for name in ("filename", "folder"))
        return b"\x80\x04}(" + entries + names + b"u."


class Pickles:
    """Crafted and damaged pickles; any program that they start is seen by the harness, as is the file it makes."""

    name = "pickles"
    inputs = 10_000

    def __init__(self, folder: Path) -> None:
        arrays = {
            "a": np.ones((2, 3), np.float32),
            "b": np.float64(2),
            "c": np.array(["x", None], object),
            "d": np.ones(2, ">i4"),
        }
        contents = (
            {"model": arrays},
            arrays,
            {"a": torch.ones(2)},
            {"filename": np.array(["a.jpg"], object), "folder": ["x"]},
        )
        self.whole = [pickle.dumps(content, protocol=p) for content in contents for p in (0, 2, 4, 5)]

    def make(self, rng: Random, folder: Path) -> Path:
        kind = rng.random()
        data = _Writer(rng).file() if kind < 0.6 else rng.choice(self.whole)
        if kind > 0.5:
            data = mutate_bytes(rng, data, self.whole)
        path = folder / f"crafted{rng.choice(('.pkl', '.pkl', '.pickle', '.pth'))}"
        path.write_bytes(data)
        return path

    def steps(self, path: Path) -> Iterable[Callable[[], object]]:
        return [partial(_without_canary, read, path) for read in (read_checkpoint, _use_tensors, read_index)]


def _use_tensors(path: Path) -> None:
    for tensor in read_state_dict(path).values():
        tensor.clone()


def _without_canary(read: Callable[[Path], object], path: Path) -> None:
    try:
        read(path)
    except OvsegError:
        if Path(_CANARY).exists():
            raise AssertionError("a command of the pickle was run") from None
        raise
    assert not Path(_CANARY).exists(), "a command of the pickle was run"
