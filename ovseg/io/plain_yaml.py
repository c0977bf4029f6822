"""Safe reading of hand-written YAML files: plain values, limited size, errors in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from ovseg.errors import OvsegError, shown

LARGEST_FILE = 2**20  # bytes
MOST_VALUES = 200_000  # with every alias followed: a few hundred bytes of aliases stand for billions of values
DEEPEST = 40  # levels
_TOO_DEEP = f"more than {DEEPEST} levels of nesting"


class _PlainLoader(yaml.SafeLoader):
    """Safe loader with limits on size and depth.

    A duplicate key is an error instead of replacing the first value. Invalid values raise a ``yaml.YAMLError`` with
    the line, where PyYAML raises exceptions of many types.
    """

    levels = 0  # that are being composed

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.levels += 1
        if self.levels > DEEPEST:  # PyYAML takes minutes for thousands of levels
            raise _refused(_TOO_DEEP, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _measure(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= 2**64:
                raise OverflowError("it is too large")
            return value
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            problem = f"{shown(node.value)} is no {node.tag.rpartition(':')[2]} ({error})"
            raise _refused(problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<", which the next step resolves
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused by the next step
            if key in seen:
                raise _refused(f"the key {shown(key)} comes twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_plain(text: str) -> Any:
    """Load the single YAML document in ``text``.

    Raises:
        yaml.YAMLError: invalid YAML, a tag that runs code, a duplicate key, an invalid value such as an impossible
            date, or excessive aliases or nesting.
    """
    return yaml.load(text, Loader=_PlainLoader)  # safe: a subclass of SafeLoader


def read_text(path: str | Path, what: str) -> str:
    """Read a small UTF-8 text file, with or without a byte order mark.

    Args:
        path: file.
        what: kind of file, for messages, such as ``"recipe"``.

    Raises:
        OvsegError: the file is missing, a folder, unreadable, not UTF-8, or larger than :data:`LARGEST_FILE`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise OvsegError(f"the {what} {path} is larger than {LARGEST_FILE >> 20} MiB: check the path")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise OvsegError(f"there is no {what} {path}: check the path") from error
    except UnicodeDecodeError as error:
        raise OvsegError(f"the {what} {path} is not text in UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise OvsegError(f"cannot read the {what} {path} ({error}): check the path") from error


def read_plain_yaml(path: str | Path, what: str) -> dict[Any, Any]:
    """Read the KEY: VALUE lines of a YAML file; an empty file gives an empty dict.

    Args:
        path: UTF-8 text file.
        what: kind of file, for messages, such as ``"recipe"``.

    Raises:
        OvsegError: see :func:`read_text` and :func:`load_plain`; or the content is not a mapping.
    """
    try:
        content = load_plain(read_text(path, what))
    except yaml.YAMLError as error:
        raise OvsegError(f"the {what} {path} is not plain YAML: {one_line(error)}") from error
    if content is not None and not isinstance(content, dict):
        raise OvsegError(f"the {what} {path} must hold lines of KEY: VALUE")
    return content or {}


def one_line(error: yaml.YAMLError) -> str:
    """Return the message of a PyYAML error on one line."""
    return " ".join(str(error).replace(' in "<unicode string>"', "").split())


def unknown_key(key: object, known: Iterable[str], source: str) -> OvsegError:
    """Return the error for an unknown key; its message suggests the most similar known key."""
    known = list(known)
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(known)}"
    return OvsegError(f"unknown key {key} in {source}; {hint}")


def _measure(node: yaml.Node, known: dict[yaml.Node, tuple[int, int] | None]) -> tuple[int, int]:
    """Return the number of values and levels of a node with aliases expanded.

    ``known`` holds the results of visited nodes, None for nodes whose computation is in progress.
    """
    if node in known:
        if known[node] is None:
            raise _refused("an alias stands for itself", node.start_mark)
        return known[node]
    known[node] = None
    size, height = 1, 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                more, below = _measure(part, known)
                size, height = size + more, max(height, below + 1)
    if size > MOST_VALUES:
        raise _refused(f"its aliases stand for more than {MOST_VALUES} values", node.start_mark)
    if height > DEEPEST:
        raise _refused(_TOO_DEEP, node.start_mark)
    known[node] = size, height
    return size, height


def _refused(problem: str, mark: yaml.Mark | None) -> yaml.YAMLError:
    return yaml.composer.ComposerError(problem=problem, problem_mark=mark)
