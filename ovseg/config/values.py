"""Conversion of values, in any common notation, to the type of their configuration key."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import yaml

from ovseg.errors import OvsegError, shown

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def fit(value: Any, default: Any, key: str) -> Any:
    """Convert ``value`` to the type of ``default``, in any notation that has one meaning only.

    Args:
        value: text of the command line, value of a YAML file, or a Python object.
        default: the default of the key; for None any value is accepted, and text is read as a Python literal.
        key: full name, for errors.

    Raises:
        ValueError: the value cannot be converted; says what to give.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy or PyTorch
        value = value.item()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if default is None:
        return _literal(value)
    if isinstance(default, (list, tuple)):
        return type(default)(_elements(value, default, key))
    for kind, convert in ((bool, _bool), (int, _int), (float, _float), (str, _str)):
        if isinstance(default, kind):
            return convert(value, key)
    return value


def option_pairs(options: Mapping[str, Any] | Sequence[Any] | None, known: set[str], whole: str) -> list[Any]:
    """Return alternating keys and values from options in any notation.

    Args:
        options: ``[KEY, VALUE, ...]``, ``["KEY=VALUE", ...]``, ``[(KEY, VALUE), ...]``, or a mapping, nested or not.
        known: all keys; none of them is accepted as a value.
        whole: the key whose value may be a mapping.

    Raises:
        OvsegError: another type, or a key without a value.
    """
    if isinstance(options, Mapping):
        return list(chain.from_iterable(leaves(options, whole)))
    if isinstance(options, (str, bytes)):
        raise OvsegError(
            f"options are the text {shown(options)}: give a list [KEY, VALUE, ...] or a dict {{KEY: VALUE}}"
        )
    words = list(options or ())
    if words and all(isinstance(word, (list, tuple)) and len(word) == 2 for word in words):
        words = list(chain.from_iterable(words))
    pairs: list[Any] = []
    rest = iter(words)
    for key in rest:
        if not isinstance(key, str):
            raise OvsegError(f"the KEY VALUE options must be pairs of KEY and VALUE: {shown(key)} is not a key")
        key, equals, value = key.partition("=")
        if not equals:
            value = next(rest, rest)
            value = next(rest, rest) if isinstance(value, str) and value == "=" else value
        if value is rest:
            raise OvsegError(f"the KEY VALUE options must be pairs of KEY and VALUE: {key} lacks a value")
        if isinstance(value, str) and value in known and key in known:
            raise OvsegError(
                f"the KEY VALUE options must be pairs of KEY and VALUE: {key} lacks a value, {value} follows it"
            )
        pairs += [key, value]
    return pairs


def leaves(node: Mapping[str, Any], whole: str = "", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested mappings; the mapping at the key ``whole`` is one value."""
    for key, value in node.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" != whole:
            yield from leaves(value, whole, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _literal(value: Any) -> Any:
    """Return the value of a Python literal, or of true, false and null; any other text and value unchanged."""
    if not isinstance(value, str):
        return os.fspath(value) if isinstance(value, os.PathLike) else value
    word = value.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    if word == "null":
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _bool(value: Any, key: str) -> bool:
    word = str(value).strip().lower() if isinstance(value, (str, int)) else None
    if word not in (*_TRUE, *_FALSE):
        raise ValueError(f"{key} is {shown(value)}: it must be True or False")
    return word in _TRUE


def _int(value: Any, key: str) -> int:
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or abs(number) >= 2**63:
        raise ValueError(f"{key} is {shown(value)}: it must be a whole number")
    return number


def _float(value: Any, key: str) -> float:
    number = _number(value)
    if number is None:
        raise ValueError(f"{key} is {shown(value)}: it must be a number")
    return float(number)


def _number(value: Any) -> int | float | None:
    """Return a number that fits a double, from 100, "100", "1e-4", "0x10"; None for any other value."""
    if isinstance(value, str):
        literal = _literal(value)
        if isinstance(literal, str):
            try:
                literal = float(value)  # YAML reads 1e-4 as a text, and nan is not a Python literal
            except ValueError:
                return None
        value = literal
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if not isinstance(value, int) or abs(value) < 2**1000 else None


def _str(value: Any, key: str) -> str:
    if value is None:
        return ""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {shown(value)}: it must be a text, in quotes")
    literal = _literal(value)
    if literal is None:
        return ""
    return literal if isinstance(literal, str) else value


_EMPTY_NUMBERS = ("DATASETS.TRAIN_WEIGHTS",)  # lists of numbers whose default has none


def _elements(value: Any, default: Sequence[Any], key: str) -> list[Any]:
    if isinstance(value, str):
        value = _split(value)
    if isinstance(value, os.PathLike):
        value = [os.fspath(value)]
    if value is None:
        return []
    if isinstance(value, Mapping):
        raise ValueError(f"{key} is {shown(value)}: it must be a list")
    values = list(value) if isinstance(value, (list, tuple, range, set)) else [value]
    if key in _EMPTY_NUMBERS:
        return [_element(part, key, False) for part in values]
    if key.startswith("DATASETS.") or (default and all(isinstance(part, str) for part in default)):
        if any(part is None for part in values):
            raise ValueError(f"{key} is {shown(value)}: it must be a list of texts")
        return [_str(part, key) for part in values]
    if default and all(type(part) in (int, float) for part in default):
        whole = all(type(part) is int for part in default)
        return [_element(part, key, whole) for part in values]
    return values


def _element(value: Any, key: str, whole: bool) -> int | float:
    """Return a number of a list; 9.0 becomes 9 where the default is ``whole``, other numbers stay (FREQUENCY_SIGMA)."""
    number = _number(value)
    if number is None:
        raise ValueError(f"{key} holds {shown(value)}: it must be a list of numbers")
    return int(number) if whole and isinstance(number, float) and number.is_integer() else number


def _split(text: str) -> Any:
    """Return the sequence in a text: (a, b), [a, b], "a, b", or a single element."""
    value = _literal(text)
    if not isinstance(value, str):
        return value
    if value != text:
        return [value]  # in quotes
    text = text.strip()
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        try:
            return yaml.safe_load(f"[{text[1:-1]}]")
        except (yaml.YAMLError, ValueError, RecursionError):
            return [text]
    return [part.strip() for part in text.split(",") if part.strip()]
