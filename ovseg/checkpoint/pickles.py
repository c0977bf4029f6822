"""Reading of pickles that creates plain values and calls nothing but given stand-ins.

``pickle.Unpickler`` with a strict ``find_class`` does not suffice: BUILD sets the state of real objects, a deep tuple
as a key overflows the stack, and a few bytes can request any amount of memory. ``pickle._Unpickler``, the same in
Python, lets each operation be replaced.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MOST_OPERATIONS = 2_000_000  # each makes at most some 100 bytes; a training checkpoint of 1,500 tensors has 200,000
_LARGE = 1 << 16
_MOST_COPIED = 4  # times the file: an array from a text is copied twice
# Operations that instantiate classes, or refer to objects outside of the pickle in other ways than BINPERSID.
_REFUSED = {"PERSID", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
_PLAIN_KEYS = (str, bytes, int, float, type(None))  # bool is an int


class Damaged(ValueError):
    """The content is not the output of any program that writes weights."""


class NeedsCode(Exception):
    """The pickle asks for an object without a stand-in; the argument is its name."""

    def __str__(self) -> str:
        return f"it asks for {self.args[0]}"


@dataclass(frozen=True)
class Call:
    """A function that a pickle may call, as ``function(*arguments)``."""

    function: Callable[..., Any]


@dataclass
class StandIn:
    """An object that the pickle builds in a second step; ``finish`` converts its state to the value."""

    finish: Callable[[Any], Any]
    value: Any = field(default=None, init=False)
    built: bool = field(default=False, init=False)


class BoundedFile:
    """A file that refuses lengths beyond its end before memory is allocated for them."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, count: int) -> bytes:
        if count > _LARGE and count > self.size - self.file.tell():
            raise Damaged("it ends too early")
        return self.file.read(count)


def read_pickle(file: BoundedFile, find: Callable[[str], Any], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle and leave ``file`` positioned after it.

    Args:
        find: returns the stand-in of a global name, a :class:`Call` or a value; raises ``KeyError`` for any other name.
        persistent: returns the value of a persistent identifier.

    Raises:
        Damaged: it is not a pickle, or not one that a program writes.
        NeedsCode: it is complete, but asks for another name.
    """
    unpickler = _Unpickler(file, find, persistent)
    try:
        try:
            return _resolved(unpickler.load())
        except NeedsCode as unknown:
            for _ in pickletools.genops(unpickler):  # a damaged pickle asks for odd names, too
                pass
            if not all(part.isidentifier() for part in unknown.args[0].split(".")):
                raise Damaged("it holds names that are not identifiers") from unknown
            raise
    except (NeedsCode, Damaged):
        raise
    except Exception as error:  # wrong operations on the stack raise almost anything
        raise Damaged("its parts do not fit together") from error


def plain_key(key: Any) -> Any:
    """Return the key of a dictionary or a set; refuse nested tuples, since hashing them takes unlimited stack depth."""
    if isinstance(key, _PLAIN_KEYS) or (type(key) is tuple and all(isinstance(part, _PLAIN_KEYS) for part in key)):
        return key
    raise Damaged(f"a {type(key).__name__} is a key in it")


class _Memo(dict):
    def __getitem__(self, index: int) -> Any:
        return _resolved(super().__getitem__(index))


class _Operations:
    """Operations by their byte, with a limit on their number."""

    def __init__(self) -> None:
        self.left = MOST_OPERATIONS

    def __getitem__(self, code: int) -> Callable[[_Unpickler], None]:
        self.left -= 1
        if self.left < 0:
            raise Damaged(f"it has more than {MOST_OPERATIONS} parts")
        return _OPERATIONS[code]


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, without what could change or call a real object, or hash a nested tuple."""

    def __init__(
        self, file: BoundedFile, find: Callable[[str], Any], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.find, self.persistent = find, persistent
        self.copies = _MOST_COPIED * (file.size + _LARGE)
        self.memo, self.dispatch = _Memo(), _Operations()

    def find_class(self, module: str, name: str) -> Any:
        name = f"{'builtins' if module == '__builtin__' else module}.{name}"  # that of Python 2, before protocol 3
        try:
            return self.find(name)
        except KeyError:
            raise NeedsCode(name) from None

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise Damaged("it refers to things outside of it")
        return self.persistent(pid)

    def load_binbytes(self) -> None:
        self._bytes(*struct.unpack("<I", self.read(4)))

    def load_binbytes8(self) -> None:
        self._bytes(*struct.unpack("<Q", self.read(8)))

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(*struct.unpack("<Q", self.read(8)))))

    def _bytes(self, count: int) -> None:
        """Push bytes; large ones as a bytearray, whose memory an array or a tensor can share."""
        self.append(bytearray(self.read(count)) if count > _LARGE else self.read(count))

    def load_append(self) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._top(list).extend(items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = _resolved(value)

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._top(set).update(map(plain_key, items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(plain_key, items)))

    def load_reduce(self) -> None:
        arguments, call = self.stack.pop(), self._top(Call)
        if type(arguments) is not tuple:
            raise Damaged("arguments are not a tuple")
        self._charge(arguments)
        self.stack[-1] = call.function(*arguments)

    load_newobj = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is dict and type(state) is dict:
            return  # attributes of an ordered dictionary, such as a state dict's _metadata
        target = self._top(StandIn)
        if target.built:
            raise Damaged("an object is built twice")
        self._charge(state if type(state) is tuple else (state,))
        target.value, target.built = target.finish(state), True
        self.stack[-1] = target.value

    def _top(self, kind: type) -> Any:
        top = self.stack[-1]
        if type(top) is not kind:
            raise Damaged(f"a {type(top).__name__} stands for a {kind.__name__}")
        return top

    def _charge(self, arguments: tuple) -> None:
        """Limit what calls may copy in total, since a few bytes can request the same copy repeatedly."""
        self.copies -= sum(len(value) for value in arguments if isinstance(value, _SIZED))
        if self.copies < 0:
            raise Damaged("it requests the same values too often")


def _resolved(value: Any) -> Any:
    return value.value if type(value) is StandIn else value


_OPERATIONS = {
    ord(opcode.code): getattr(_Unpickler, pickle._Unpickler.dispatch[ord(opcode.code)].__name__)
    for opcode in pickletools.opcodes
    if opcode.proto <= 5 and opcode.name not in _REFUSED
}
