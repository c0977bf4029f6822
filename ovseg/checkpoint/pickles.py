"""Interpreter of pickles that creates plain values and calls nothing but given stand-ins.

``pickle.Unpickler`` with a strict ``find_class`` does not suffice: BUILD sets the state of real objects, a deep tuple
as a key overflows the stack, and a few bytes can request any amount of memory.
"""

from __future__ import annotations

import difflib
import pickletools
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MOST_OPERATIONS = 2_000_000  # each makes at most some 100 bytes; a training checkpoint of 1,500 tensors has 200,000
_LARGE = 1 << 16
_MOST_COPIED = 4  # times the file: an array from a text is copied twice
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
    """A file for ``pickletools`` that refuses lengths beyond its end before memory is allocated for them."""

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
    try:
        operations = pickletools.genops(file)
        try:
            return _Machine(find, persistent, _MOST_COPIED * (file.size + _LARGE)).run(operations)
        except NeedsCode as unknown:
            for _ in operations:  # a damaged pickle asks for odd names, too
                pass
            if not all(part.isidentifier() for part in unknown.args[0].split(".")):
                raise Damaged("it holds names that are not identifiers") from unknown
            raise
    except (NeedsCode, Damaged):
        raise
    except Exception as error:  # wrong operations on the stack raise almost anything
        raise Damaged("its parts do not fit together") from error


def miswritten(name: str, known: Collection[str]) -> bool:
    """Whether a name does not exist but resembles a known one, as in a file with damaged letters."""
    module, _, leaf = name.rpartition(".")
    exists = leaf in vars(sys.modules.get(module, object))
    return not exists and bool(difflib.get_close_matches(name, known, n=1, cutoff=0.8))


def plain_key(key: Any) -> Any:
    """Return the key of a dictionary or a set; refuse nested tuples, since hashing them takes unlimited stack depth."""
    if isinstance(key, _PLAIN_KEYS) or (type(key) is tuple and all(isinstance(part, _PLAIN_KEYS) for part in key)):
        return key
    raise Damaged(f"a {type(key).__name__} is a key in it")


class _Machine:
    """The stack machine of the pickle format."""

    def __init__(self, find: Callable[[str], Any], persistent: Callable[[Any], Any] | None, copies: int):
        self.find, self.persistent, self.copies = find, persistent, copies
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, operations: Iterable[tuple]) -> Any:
        for count, (operation, argument, _) in enumerate(operations):
            if count > MOST_OPERATIONS:
                raise Damaged(f"it has more than {MOST_OPERATIONS} parts")
            name = operation.name
            if name in _LITERALS:
                self.stack.append(_literal(argument))
            elif name in _NEW:
                self.stack.append(_NEW[name]())
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name == "STOP":
                return _resolved(self.stack.pop())
            elif name not in ("PROTO", "FRAME"):
                raise Damaged(f"it uses {name}")
        raise Damaged("it ends too early")

    def _top(self, kind: type) -> Any:
        top = self.stack[-1]
        if type(top) is not kind:
            raise Damaged(f"a {type(top).__name__} stands for a {kind.__name__}")
        return top

    def _items(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._items()

    def _pop_mark(self, _: Any) -> None:
        self._items()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: Any) -> None:
        items = self._items()
        self.stack.append(tuple(items))

    def _tuple1(self, _: Any) -> None:
        self._join(1)

    def _tuple2(self, _: Any) -> None:
        self._join(2)

    def _tuple3(self, _: Any) -> None:
        self._join(3)

    def _join(self, count: int) -> None:
        if len(self.stack) < count:
            raise Damaged("its stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _list(self, _: Any) -> None:
        items = self._items()
        self.stack.append(items)

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        items = self._items()
        self._top(list).extend(items)

    def _dict(self, _: Any) -> None:
        items = self._items()
        self.stack.append({})
        self._set(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._items())

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = _resolved(value)

    def _additems(self, _: Any) -> None:
        items = self._items()
        self._top(set).update(map(plain_key, items))

    def _frozenset(self, _: Any) -> None:
        items = self._items()
        self.stack.append(frozenset(map(plain_key, items)))

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._put(len(self.memo))

    def _get(self, index: int) -> None:
        self.stack.append(_resolved(self.memo[index]))

    _binget = _long_binget = _get

    def _global(self, name: str) -> None:
        name = name.replace(" ", ".")
        if name.startswith("__builtin__."):  # Python 2's name, which protocols before 3 write
            name = name.replace("__builtin__", "builtins", 1)
        try:
            self.stack.append(self.find(name))
        except KeyError:
            raise NeedsCode(name) from None

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Damaged("a global name is not a string")
        self._global(f"{module}.{name}")

    def _reduce(self, _: Any) -> None:
        arguments, call = self.stack.pop(), self._top(Call)
        if type(arguments) is not tuple:
            raise Damaged("arguments are not a tuple")
        self._charge(arguments)
        self.stack[-1] = call.function(*arguments)

    _newobj = _reduce

    def _build(self, state: Any) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is dict and type(state) is dict:
            return  # attributes of an ordered dictionary, such as a state dict's _metadata
        target = self._top(StandIn)
        if target.built:
            raise Damaged("an object is built twice")
        self._charge(state if type(state) is tuple else (state,))
        target.value, target.built = target.finish(state), True
        self.stack[-1] = target.value

    def _charge(self, arguments: tuple) -> None:
        """Limit what calls may copy in total, since a few bytes can request the same copy repeatedly."""
        self.copies -= sum(len(value) for value in arguments if isinstance(value, _SIZED))
        if self.copies < 0:
            raise Damaged("it requests the same values too often")

    def _binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise Damaged("it refers to things outside of it")
        self.stack[-1] = self.persistent(self.stack[-1])


def _literal(argument: Any) -> Any:
    """Return large bytes as a bytearray, whose memory an array or a tensor can share."""
    return bytearray(argument) if type(argument) is bytes and len(argument) > _LARGE else argument


def _resolved(value: Any) -> Any:
    return value.value if type(value) is StandIn else value


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NEW = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": bool, "EMPTY_TUPLE": tuple},
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set},
}
_STEPS = {
    opcode.name: getattr(_Machine, method)
    for opcode in pickletools.opcodes
    if hasattr(_Machine, method := f"_{opcode.name.lower()}")
}
