"""YAML files that people write by hand: plain values only, and mistakes told in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from ovseg.errors import OvsegError


class _PlainLoader(yaml.SafeLoader):
    """Safe loading in which a key that comes twice is an error, not the loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<", which the next step resolves
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused by the next step
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} comes twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_plain_yaml(path: str | Path, what: str) -> dict[Any, Any]:
    """The KEY: VALUE lines of a YAML file; an empty file gives none.

    Args:
        path: UTF-8 text.
        what: what the file is, for messages, such as ``"recipe"``.

    Raises:
        OvsegError: missing or unreadable, no YAML, tags that run code, a key twice, or not KEY: VALUE lines.
    """
    try:
        # safe: a SafeLoader, which refuses tags that run code; yaml.safe_load cannot be told of another one
        content = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_PlainLoader)
    except FileNotFoundError as error:
        raise OvsegError(f"there is no {what} {path}: check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OvsegError(f"cannot read the {what} {path} ({error}): check the path") from error
    except yaml.YAMLError as error:
        raise OvsegError(f"the {what} {path} is not plain YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise OvsegError(f"the {what} {path} must hold lines of KEY: VALUE")
    return content or {}


def unknown_key(key: object, known: Iterable[str], source: str) -> OvsegError:
    """The error for a key that nobody reads, with the nearest one that is read."""
    known = list(known)
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(known)}"
    return OvsegError(f"unknown key {key} in {source}; {hint}")
