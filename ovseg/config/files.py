"""Configuration files: YAML over the files that its ``_BASE_`` names, with paths that count from the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovseg.config import published_tree
from ovseg.config.errors import explain_config_errors
from ovseg.config.per_dataset import general_names, is_path, part_of, take_back
from ovseg.config.values import fit
from ovseg.errors import OvsegError, shown
from ovseg.io.files import file_digest, is_dir, is_file, matches
from ovseg.io.plain_yaml import load_plain, read_text
from ovseg.io.shipped import shipped

BASE = "_BASE_"
CONFIGS = shipped("configs")
# Keys whose value may be the path of a file; names such as ViT-L/14, tags such as openai and URLs are no paths.
PATHS = (
    "MODEL.WEIGHTS",
    "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS",
    "MODEL.TIMM.WEIGHTS",
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME",
    "MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT",
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_WEIGHTS",
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME",
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_CHECKPOINT",
    "MODEL.CLIP_ADAPTER.TEXT_TABLE",
    "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED",
    "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON",
    "MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON",
    "MODEL.NAMER.REGIONS",
    "MODEL.PROPOSER.SAM.MODEL",
    "MODEL.OVSEGMENTOR.IMG_ENCODER.IMGNET_PRETRAINED_CHECKPOINT",
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG",
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.VOCAB",
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.WEIGHTS",
    "MODEL.OVSEGMENTOR.STAGE1_CHECKPOINT",
    "INPUT.CAPTION.WORD_FILE",
    "INPUT.CAPTION.WORDS",
    "INPUT.TEXT_AUG.ENTITIES",
    "TEST.SG_IOU_TABLE",
    "TEST.VOCABULARY",
    "TEST.ZERO_SHOT.NAMES",
)
_PLAIN = (str, int, float, bool, type(None), list)


def find_config(name: str | Path) -> str:
    """Return the path of a configuration file, given as a path or as the name of one that comes with the package.

    A name is that of a file in ``configs/`` without ``.yaml`` (``"photo"``, ``"toy/scan_toy"``), or its path that
    starts with ``configs/``, so that documented commands work in every folder. A file of that path, seen from the
    working folder, wins.

    Raises:
        OvsegError: there is no file of this name.
    """
    name = str(name)
    if not name or is_file(name):
        return name
    parts = Path(name).parts
    if (is_path := parts[0] == CONFIGS.name) or not (Path(name).suffix or Path(name).is_absolute() or name[0] == "."):
        place = CONFIGS.joinpath(*parts[1:]) if is_path else CONFIGS / f"{name}.yaml"
        if ".." not in parts and is_file(place):
            return str(place)
    if os.path.splitext(name)[1] or os.path.basename(name) != name:
        return name
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    raise OvsegError(
        f"there is no configuration file {shown(name)}, nor one of this name in configs/: give a YAML file, or one of "
        f"{', '.join(names)}"
    )


def check_file(name: str | Path) -> None:
    """Check that a configuration file and its bases can be read, before what imports slowly is imported.

    Args:
        name: see :func:`find_config`.

    Raises:
        OvsegError: see :func:`find_config` and :func:`load_layers`.
    """
    load_layers(find_config(name))


def load_layers(path: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the contents of a YAML file over those of its ``_BASE_`` files; later ones win over earlier ones.

    Relative paths of :data:`PATHS` and of data sets (``*.yaml``) are made absolute: see :func:`resolve`. Keys in
    OVSegmentor's published format, with ``_base_`` files, are not translated: see
    :mod:`ovseg.config.published_tree`.

    Args:
        path: file of this machine.
        above: the files that led here.

    Raises:
        OvsegError: a file that is missing, no plain YAML, or its own base; anything but keys with values below keys.
    """
    text = read_text(path, "configuration file")
    place = os.path.realpath(path)
    if place in above:
        raise OvsegError(f"{path} is its own {BASE}, by way of {', '.join(above)}: take one of them out")
    with explain_config_errors({}, str(path), text):
        own = load_plain(text)
    if own is None:
        own = {}
    if not isinstance(own, dict):
        raise OvsegError(f"{path} must hold lines of KEY: VALUE, not {shown(own)}")
    _resolve_paths(own, Path(path).parent)
    published_tree.locate(own, Path(path).parent)
    bases = [base for key in (BASE, published_tree.BASE) for base in _bases(own.pop(key, None), path, key)]
    merged: dict[str, Any] = {}
    for base in bases:
        _merge(load_layers(Path(path).parent / Path(base).expanduser(), (*above, place)), merged, base)
    if merged and published_tree.is_published(own) and not published_tree.is_published(merged):
        raise OvsegError(
            f"{path} is in the published format, but its base {', '.join(bases)} in ours, whose keys would win over "
            "it: write both in one format"
        )
    _merge(own, merged, str(path))
    take_back(part_of(merged, "TEST", "PER_DATASET"), general_names(own), part_of(own, "TEST", "PER_DATASET"))
    return merged


def resolve(value: Any, folder: Path) -> Any:
    """Return the absolute path of a file that a configuration file in ``folder`` names.

    A relative path counts from ``folder``. Where no file is there, it counts from the working folder, as the published
    configurations mean it. A value that leads to no file stays as it is, unless it starts with ``./`` or ``../``.
    """
    if not isinstance(value, str) or "://" in value or not value or "\0" in value:
        return value
    for place in (folder / value, Path(value)):
        if is_file(place):
            return os.path.abspath(place)
    return os.path.abspath(folder / value) if value.startswith(("./", "../")) else value


def by_content(values: Any) -> Any:
    """Return plain nested values with the names of existing files (of any suffix) replaced by digests of their content.

    Two configurations that differ only in the folder of their files become equal.
    """
    if isinstance(values, dict):
        return {by_content(key): by_content(value) for key, value in values.items()}
    if isinstance(values, list):
        return [by_content(value) for value in values]
    if isinstance(values, str) and os.path.splitext(values)[1] and is_file(Path(values)):
        return f"sha256:{file_digest(values)}"
    return values


def _resolve_paths(own: dict[str, Any], folder: Path) -> None:
    for key in PATHS:
        *sections, name = key.split(".")
        if name in (section := part_of(own, *sections)) and section[name] not in ("names", "synonyms", "imagenet"):
            section[name] = resolve(section[name], folder)
    for name, value in (datasets := part_of(own, "DATASETS")).items():
        if name in ("TRAIN", "TEST") and ".y" in str(value).lower():
            with contextlib.suppress(ValueError):  # the key's value is checked when it is merged
                names = fit(value, [], f"DATASETS.{name}")
                datasets[name] = [resolve(name, folder) if is_path(name) else name for name in names]
    if "PSEUDO_MASKS" in datasets:
        with contextlib.suppress(ValueError):
            names = fit(datasets["PSEUDO_MASKS"], [], "DATASETS.PSEUDO_MASKS")
            datasets["PSEUDO_MASKS"] = [
                os.path.abspath(folder / name) if is_dir(folder / name) else resolve(name, folder) for name in names
            ]
    for section in (part_of(datasets, "IMAGE_TEXT"), part_of(own, "TEST", "ZERO_SHOT")):
        for name in {"ROOT", "FILE"} & section.keys():
            value = section[name]
            is_here = isinstance(value, str) and value and "://" not in value and matches(folder / value)
            section[name] = os.path.abspath(folder / value) if is_here else resolve(value, folder)
    entries = part_of(own, "TEST", "PER_DATASET")
    for name in [name for name in entries if is_path(name)]:
        entries[resolve(name, folder)] = entries.pop(name)


def _bases(value: Any, path: str | Path, key: str) -> list[str]:
    bases = [] if value is None else value if isinstance(value, list) else [value]
    for base in bases:
        if not isinstance(base, str) or not base:
            raise OvsegError(f"{key} in {path} is {shown(value)}: name a file, or a list of files")
        if "://" in base:
            raise OvsegError(f"{key} in {path} is {shown(base)}: download that file and name your copy")
    return bases


def _merge(own: Mapping[Any, Any], merged: dict[str, Any], source: str, prefix: str = "") -> None:
    """Write ``own`` over ``merged``; a key with nothing below it takes nothing away."""
    for key, value in own.items():
        if not isinstance(key, str):
            raise OvsegError(f"{source}: {shown(key)} is no configuration key{f' below {prefix[:-1]}' * bool(prefix)}")
        name, there = f"{prefix}{key}", merged.get(key)
        if isinstance(value, dict):
            if key in merged and there is not None and not isinstance(there, dict):
                raise OvsegError(f"{source}: {name} holds keys, but is {shown(there)} in the file's {BASE}")
            merged[key] = there or {}
            _merge(value, merged[key], source, f"{name}.")
        elif not isinstance(value, _PLAIN):
            raise OvsegError(f"{source}: {name} is a {type(value).__name__}: write it in quotes if it is a text")
        elif value is not None or not isinstance(there, dict):
            merged[key] = value
