"""Files and options in OVSegmentor's published format: recognition, interpolations, paths and overrides.

The format is that of OmegaConf: nested lower-case keys, one ``_base_`` file, values such as ``${model.use_maskloss}``
that repeat another key, and options ``KEY=VALUE`` with dotted keys. :mod:`ovseg.config.published` translates it.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ovseg.config.per_dataset import part_of
from ovseg.errors import OvsegError, shown
from ovseg.io.files import matches
from ovseg.io.plain_yaml import load_plain

BASE = "_base_"
SECTIONS = ("model", "data", "train", "evaluate", "checkpoint")  # each of them, or BASE, marks a published file
ALONE = ("output", "model_name", "tag", "seed", "print_freq", "vis", "vocab", "image_folder", "output_folder")
PATHS = (
    *(f"data.{part}.{name}" for part in ("train", "val") for name in ("root_dir", "meta_file")),
    *("checkpoint.resume", "checkpoint.stage1_checkpoint", "model.img_encoder.imgnet_pretrained_checkpoint"),
    *(f"model.text_encoder.{name}" for name in ("config", "vocab", "weights")),
)
_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_][\w.]*)\s*\}")


def is_published(content: Mapping[Any, Any]) -> bool:
    """Return whether the content of a YAML file is in the published format."""
    return not content.keys().isdisjoint((BASE, *SECTIONS))


def is_published_key(key: str) -> bool:
    """Return whether an option's key is one of the published format."""
    return key.partition(".")[0] in SECTIONS or key in ALONE


def split(content: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Return the published keys of a file and all others, which are ours and win over the former."""
    if not is_published(content):
        return {}, dict(content)
    published = {key: value for key, value in content.items() if isinstance(key, str) and key == key.lower()}
    return published, {key: value for key, value in content.items() if key not in published}


def locate(content: Mapping[Any, Any], folder: Path) -> None:
    """Make the paths of a published file in ``folder`` absolute, in place, where something is there.

    They count from the folder of the file, or from the working folder, as in the original.
    """
    for key in PATHS:
        *sections, name = key.split(".")
        section = part_of(content, *sections)
        if isinstance(value := section.get(name), str) and value and "\0" not in value and "://" not in value:
            found = [place for place in (folder / value, Path(value)) if matches(place)]
            section[name] = os.path.abspath(found[0]) if found else value


def interpolated(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a tree with every ``${KEY}`` replaced by the value of that key.

    Raises:
        OvsegError: a key that does not exist, or keys that repeat each other.
    """
    return {key: _interpolate(value, tree, source, ()) for key, value in tree.items()}


def _interpolate(value: Any, tree: Mapping[str, Any], source: str, above: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _interpolate(part, tree, source, above) for key, part in value.items()}
    if isinstance(value, list):
        return [_interpolate(part, tree, source, above) for part in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def look_up(name: str) -> Any:
        if name in above:
            raise OvsegError(f"{source}: ${{{name}}} repeats itself, by way of {', '.join(above)}: give it a value")
        *sections, last = name.split(".")
        if last not in (section := part_of(tree, *sections)):
            raise OvsegError(f"{source}: {value} repeats a key that does not exist: correct it, or give the value")
        return _interpolate(section[last], tree, source, (*above, name))

    if whole := _REFERENCE.fullmatch(value.strip()):
        return look_up(whole[1])
    text = _REFERENCE.sub(lambda found: str(look_up(found[1])), value)
    if "${" in text:
        raise OvsegError(f"{source}: {shown(value)} is no interpolation: write ${{KEY}} with a key of the file")
    return text


def with_options(tree: Mapping[str, Any], pairs: Iterable[tuple[str, Any]], source: str) -> dict[str, Any]:
    """Return a tree with options over it; a text is read as YAML, as OmegaConf does.

    Raises:
        OvsegError: a key lies below one that has a value.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(tree))
    for key, value in pairs:
        *sections, name = key.split(".")
        node = changed
        for section in sections:
            if node.get(section) is None:
                node[section] = {}
            node = node[section]
            if not isinstance(node, dict):
                raise OvsegError(f"{source}: {key} lies below {section}, which has the value {shown(node)}")
        node[name] = _value(value)
    return changed


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return load_plain(value)
    except yaml.YAMLError:
        return value
