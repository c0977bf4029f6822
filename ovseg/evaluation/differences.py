"""Differences between two nested mappings of settings, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LONGEST = 60  # characters of a value that are shown
_ABSENT = object()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one with dotted names; empty mappings are dropped."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def different_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the dotted names whose values differ or that only one mapping has, in the order of ``first``.

    A list equals a tuple of the same items.
    """
    one, two = flatten(first), flatten(second)
    return [name for name in {**one, **two} if _plain(one.get(name, _ABSENT)) != _plain(two.get(name, _ABSENT))]


def differences(first: Mapping[str, Any], second: Mapping[str, Any], form: str = "{} was {} and is {}") -> list[str]:
    """Return a sentence for each of :func:`different_keys`; ``form`` is filled with the name and both values."""
    one, two = flatten(first), flatten(second)
    return [form.format(name, short(one.get(name)), short(two.get(name))) for name in different_keys(first, second)]


def short(value: Any) -> str:
    """Return a value as text on one line, truncated to 60 characters."""
    text = repr(value) if isinstance(value, str) and not value else str(value)
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
