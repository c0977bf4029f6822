"""Small damages to bytes and to nested values, all chosen by the generator they are given."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import yaml

NUMBERS: tuple[float, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63, -(2**63), 2**64),
    *(10**9, 10**30, 0.5, -0.5, 1.5, 1e-320, 1e9, 1e308, -1e308, math.nan, math.inf, -math.inf),
)
TEXTS = (
    *("", " ", "\0", "a\nb", "a\rb", "\t", "ignore", "0", "-1", "1e9", "nan", "None", "true", "0: sky", "sky,", ";"),
    *("café", "cafe\u0301", "\u200bsky", "\ufeff", "\ud800", "😀", "\u202esky", "İ", "ß", "SKY", "\x1b[31m", "\u2028"),
    *(
        "../../outside",
        "/",
        "/dev/zero",
        "C:\\x",
        "..\\..\\x",
        ".",
        "~",
        "~nobody/x",
        "$HOME",
        "a/b",
        "*",
        "**",
        "[ab]",
    ),
    *("x" * 300, "y" * 100_000, "é" * 200, "%s%n", "{}", "{0}", "{", "}", "%", "\\", "'", '"', "# x", "- x", "a: b"),
    *("http://example.invalid/x", "file:///etc/passwd", "-x", "--help", "!!python/object/apply:os.system [id]"),
)
_SIMPLE = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": 1}, ["x"], [1, 2], "2020-13-45")


def odd_value(rng: Random) -> Any:
    """A plain value that is seldom what is wanted."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    return copy.deepcopy(rng.choice(_SIMPLE)) if kind < 7 else _nested(rng)


def _nested(rng: Random) -> Any:
    value: Any = rng.choice((None, 1, "x"))
    for _ in range(rng.choice((3, 30, 60))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def mutate_value(rng: Random, value: Any, odd: Callable[[Random], Any] = odd_value) -> Any:
    """A copy of nested lists and dictionaries with up to three changes."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        slots = list(_slots(value))
        if not slots or rng.random() < 0.01:
            return odd(rng)
        _edit(rng, *rng.choice(slots), slots, odd)
    return value


def _slots(value: Any) -> Any:
    """(container, key) of everything in it, at most a few levels deep."""
    stack = [value]
    while stack:
        inner = stack.pop()
        items = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, item in items:
            yield inner, key
            stack.append(item)


def _edit(rng: Random, holder: Any, key: Any, slots: Sequence[tuple[Any, Any]], odd: Callable[[Random], Any]) -> None:
    if key not in (holder if isinstance(holder, dict) else range(len(holder))):
        return  # an earlier edit took it away
    item, kind = holder[key], rng.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(rng.randint(0, len(holder)), copy.deepcopy(item))
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice((rng.choice(TEXTS), f"{key}x", str(key)[:-1], str(key).upper()))] = holder.pop(key)
    elif kind == 3:
        other, place = rng.choice(slots)
        if place in (other if isinstance(other, dict) else range(len(other))):
            holder[key] = copy.deepcopy(other[place])
    elif kind == 4:
        holder[key] = rng.choice((str(item), [item], {"a": item}, [item] * 3, None))
    elif kind == 5 and isinstance(item, (int, float)):
        holder[key] = rng.choice((-item, item * 10**9, item + 0.5, float(item), str(item), item + 1))
    elif kind == 6 and isinstance(item, str):
        holder[key] = rng.choice(
            (f" {item} ", item.upper(), f"{item}\0", item * 2, item[:-1], f"./{item}", f"{item}\n")
        )
    else:
        holder[key] = odd(rng)


def to_json(rng: Random, value: Any) -> bytes:
    """JSON of a value, now and then in an odd or damaged form."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    kind = rng.randrange(30)
    if kind == 0:
        place = rng.randint(0, len(text))
        text = text[:place] + "[" * rng.choice((100, 5000, 200_000)) + text[place:]
    elif kind == 1:
        keys = re.findall(r'"(\w+)":', text)
        if keys:  # a key twice
            text = text.replace(f'"{rng.choice(keys)}":', f'"{rng.choice(keys)}":', 1)
    elif kind == 2:
        return text.encode("utf-16", "surrogatepass")
    elif kind == 3:
        text = "\ufeff" + text
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, data) if kind in (4, 5, 6) else data


def to_yaml(rng: Random, value: Any) -> bytes:
    """YAML of a value, now and then with tags, aliases, twice the same key, or damage."""
    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    lines, kind = text.splitlines(), rng.randrange(20)
    if kind == 0 and lines:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    elif kind == 1:
        bomb = ["a: &a [x, x, x, x, x, x, x, x, x]"]
        bomb += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)]
        key = lines[0].split(":")[0] if lines else "x"
        lines = [*bomb, *lines, f"{key}: *h"]
    elif kind == 2 and lines:
        line = rng.randrange(len(lines))
        tags = ("!!python/object/apply:os.system ['id']", "!!python/name:os.system", "!!binary x", "!!int x", "!x y")
        lines[line] = (
            f"{lines[line].split(':')[0]}: {rng.choice((*tags, '*nothing', '&a [*a]', '[', '{', '2020-13-45'))}"
        )
    elif kind == 3 and lines:
        line = rng.randrange(len(lines))
        lines[line] = "\t" + lines[line]
    data = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    return mutate_bytes(rng, data) if kind in (4, 5, 6) else data


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Up to four damages: flipped bits, lost, doubled, zeroed, swapped and foreign parts, extreme numbers."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not result:
            break
        rng.choice(_DAMAGES)(rng, result, others)
    return bytes(result)


def _span(rng: Random, data: bytearray) -> slice:
    start = rng.randrange(len(data))
    return slice(start, start + rng.choice((1, 2, 4, 8, 32, max(1, len(data) // 4))))


def _flip(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 4, 16))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    size = rng.choice((1, 2, 4, 8))
    start = rng.randrange(min(len(data), rng.choice((64, len(data)))))
    number = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, -1))
    data[start : start + size] = (number % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def _digits(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if found := list(re.finditer(rb"\d+", data)):
        data[slice(*rng.choice(found).span())] = str(rng.choice(NUMBERS)).encode()


def _truncate(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[_span(rng, data)]


def _double(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    span = _span(rng, data)
    data[span.stop : span.stop] = data[span]


def _zero(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    span = _span(rng, data)
    data[span] = bytes(len(data[span]))


def _insert(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = rng.choice((rng.randbytes(rng.randint(1, 16)), b"\0", b"\n", b"\xff\xfe", b"\xed\xa0\x80"))


def _splice(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if others:
        other = rng.choice(others)
        data[rng.randrange(len(data)) :] = other[rng.randint(0, len(other)) :]


_DAMAGES = (_flip, _flip, _overwrite, _overwrite, _digits, _truncate, _remove, _double, _zero, _insert, _splice)
