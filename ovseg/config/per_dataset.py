"""``TEST.PER_DATASET``: inference settings of single data sets, so that one run evaluates each with its own.

    TEST:
      PER_DATASET:
        ade20k_sem_seg_val: {MASK_THR: 0.55, CLIP_ENSEMBLE_WEIGHT: 0.75}

An entry wins over the key of that name of ``MODEL.CLIP_ADAPTER`` (``BG_THRESH``: of ``MODEL.OVSEGMENTOR``) on that data
set. Whoever says that key for all data sets
*later*, in a file that has this one as its ``_BASE_`` or on the command line, takes the entries back: the published
commands, which set the keys themselves, mean what they say.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ovseg.config.values import fit
from ovseg.errors import OvsegError, shown
from ovseg.io.plain_yaml import load_plain

if TYPE_CHECKING:
    from detectron2.config import CfgNode

KEY = "TEST.PER_DATASET"
LIMITS = {
    "MASK_THR": (0.0, 1.0),
    "CLIP_ENSEMBLE_WEIGHT": (-1.0, 1.0),
    "REPLACE_RATIO": (0.0, 1.0),
    "BG_THRESH": (0.0, 1.0),
}
# the sections of the keys for all data sets
GENERAL = {name: ("MODEL", "OVSEGMENTOR" if name == "BG_THRESH" else "CLIP_ADAPTER") for name in LIMITS}


def take_back(entries: dict[str, Any], names: Iterable[str], keep: Mapping[str, Any] | None = None) -> None:
    """Remove what a later, general setting overrules.

    Args:
        entries: settings by data set, changed in place.
        names: the keys that were set for all data sets.
        keep: entries that were made together with these, and stay.
    """
    for dataset, settings in list(entries.items()):
        taken = set(names) - set(part_of(keep or {}, dataset))
        if isinstance(settings, dict) and taken.intersection(settings):
            for name in taken.intersection(settings):
                del settings[name]
            if not settings:
                del entries[dataset]


def prepare_for_merge(cfg: CfgNode, options: Sequence[Any] = ()) -> list[Any]:
    """Make a configuration ready to take a file or options: take back what they overrule, make room for new entries.

    Args:
        cfg: a whole configuration; of a part of one nothing is changed.
        options: alternating keys, such as ``MODEL.CLIP_ADAPTER.MASK_THR`` or ``TEST.PER_DATASET.my_set.MASK_THR``, and
            values.

    Returns:
        the options, with a value of ``TEST.PER_DATASET`` itself read as YAML.

    Raises:
        yaml.YAMLError: it is none.
    """
    from detectron2.config import CfgNode  # imports slowly, and the files of a configuration are read without it

    options, entries = list(options), part_of(cfg, "TEST", "PER_DATASET")
    if not isinstance(entries, CfgNode):
        return options
    new_node = type(cfg)
    entries.set_new_allowed(True)  # yacs remembers this for each node, the entries' own among them
    keys = [str(key) for key in options[0::2]]
    take_back(entries, [name for name, sections in GENERAL.items() if ".".join((*sections, name)) in keys])
    for key in keys:
        dataset, _, name = key.removeprefix(f"{KEY}.").partition(".")
        if key.startswith(f"{KEY}.") and name in LIMITS:
            entries.setdefault(dataset, new_node(new_allowed=True)).setdefault(name, None)
    for place in range(1, len(options), 2):
        if options[place - 1] == KEY:
            content = load_plain(options[place]) if isinstance(options[place], str) else options[place]
            if not isinstance(content, dict):
                raise ValueError(f"{KEY} is {shown(content)}: write {{DATA_SET: {{MASK_THR: 0.4}}}}")
            options[place] = new_node(_read_texts(content), new_allowed=True)
    return options


def general_names(content: Any) -> list[str]:
    """Return the settings that a YAML file has for all data sets."""
    return [name for name, sections in GENERAL.items() if name in part_of(content, *sections)]


def is_path(name: Any) -> bool:
    """Return whether a data set's name is the path of a YAML file that describes it (which need not exist)."""
    return isinstance(name, str) and name.lower().endswith((".yaml", ".yml"))


def settings_of(cfg: CfgNode, dataset_name: str) -> dict[str, float]:
    """Return the settings of one data set, by the last part of their keys; empty where there are none.

    An alias that has no entry of its own has that of the benchmark that it stands for (``benchmark`` in its metadata);
    of paths, whatever leads to the same file is the same name.
    """
    from detectron2.data import MetadataCatalog

    entries = cfg.TEST.PER_DATASET
    if dataset_name not in entries and dataset_name in MetadataCatalog:
        dataset_name = MetadataCatalog.get(dataset_name).get("benchmark", dataset_name)
    if dataset_name not in entries and is_path(dataset_name):
        place = os.path.realpath(dataset_name)
        dataset_name = next((name for name in entries if is_path(name) and os.path.realpath(name) == place), "")
    return dict(entries.get(dataset_name, {}))


def config_of(cfg: CfgNode, dataset_name: str) -> CfgNode:
    """Return the configuration of one data set's evaluation: its settings in the general keys, without entries.

    Returns:
        a copy, frozen as ``cfg`` is.
    """
    effective = cfg.clone()
    effective.defrost()
    for name, value in settings_of(cfg, dataset_name).items():
        part_of(effective, *GENERAL[name])[name] = value
    effective.TEST.PER_DATASET.clear()
    if cfg.is_frozen():
        effective.freeze()
    return effective


def check_values(cfg: CfgNode) -> None:
    """Check the settings of all data sets; :func:`ovseg.data.catalog.check_per_dataset` checks their names, too.

    Raises:
        OvsegError: an unknown setting, or a value that cannot be; names it.
    """
    for dataset, settings in cfg.TEST.PER_DATASET.items():
        if not isinstance(settings, dict):
            raise OvsegError(f"{KEY}.{dataset} is {settings!r}: write {{MASK_THR: 0.4}}, or any of {', '.join(LIMITS)}")
        for name, value in settings.items():
            known = [key for key, sections in GENERAL.items() if key in part_of(cfg, *sections)]
            if name not in known:
                raise OvsegError(f"{KEY}.{dataset} sets {name}: only {', '.join(known)} can be set for a data set")
            low, high = LIMITS[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise OvsegError(f"{KEY}.{dataset}.{name} is {value!r}: use a number from {low:g} to {high:g}")


def _read_texts(content: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(key): _read_texts(value) if isinstance(value, Mapping) else fit(value, None, str(key))
        for key, value in content.items()
    }


def part_of(content: Any, *path: str) -> dict[str, Any]:
    """Return a part of a YAML file; empty if it is missing or no mapping, which is checked elsewhere."""
    for part in path:
        content = content.get(part) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}
