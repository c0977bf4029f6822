"""What the records of a labelling run depend on, kept in its folder, so that no run adds labels of another kind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ovseg
from ovseg.config import load_cfg
from ovseg.config.files import PATHS
from ovseg.config.values import leaves
from ovseg.errors import OvsegError
from ovseg.io.files import write_text
from ovseg.labelling.options import Model
from ovseg.labelling.records import PATTERN

SETTINGS = "settings.json"
WORDS = ("words", "background", "texts")  # settings that are no digests


def settings_of(model: Model) -> dict[str, Any]:
    """Return the words, the version of this program, and digests of configuration and weights."""
    from ovseg.adaptation.shard_work import teacher_settings

    words = model.vocabulary
    return {
        "words": list(words.foreground),
        "background": list(words.background),
        "texts": list(words.texts),
        "ovseg": ovseg.__version__,
        **teacher_settings(model.config_file, None, model.opts),
        "folders": folder_fingerprints(model.config_file, model.opts),
    }


def folder_fingerprints(config_file: str, opts: Sequence[Any]) -> dict[str, str]:
    """Return a digest of each folder that a key of a configuration names, as those of models of the hub."""
    values = dict(leaves(load_cfg(config_file, opts)))
    found = {key: str(values.get(key) or "").removeprefix("local-dir:") for key in PATHS}
    return {key: _fingerprint(Path(folder)) for key, folder in found.items() if folder and os.path.isdir(folder)}


def _fingerprint(folder: Path) -> str:
    """Return a digest of names, sizes and times of modification of the files below a folder."""
    digest = hashlib.sha256()
    for place, folders, names in os.walk(folder):
        folders.sort()
        for file in (Path(place, name) for name in sorted(names)):
            if file.exists():  # not a link to a missing file
                known = file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns
                digest.update(repr(known).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a folder, or check that they are those of its records.

    Raises:
        OvsegError: they differ, or the file is damaged.
    """
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if any(folder.glob(PATTERN.format("*"))):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise OvsegError(f"{path} is missing or damaged: choose another --output, or delete {folder}")
        changed = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
        if changed:
            raise OvsegError(
                f"{folder} has labels that were made with other settings ({', '.join(changed)}): choose another "
                "--output, or delete it"
            )
        return
    write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
