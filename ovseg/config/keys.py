"""Configurations: reading of files and options over the defaults, and refusal of keys without effect."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as Detectron2CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.projects.deeplab import add_deeplab_config

from ovseg.config import ovsegmentor, published_tree
from ovseg.config.defaults import DEFAULTS, OPTIONAL, SHORT, WITHOUT_EFFECT
from ovseg.config.errors import explain_config_errors
from ovseg.config.files import find_config, load_layers
from ovseg.config.limits import check_config, lookup
from ovseg.config.per_dataset import KEY as PER_DATASET
from ovseg.config.per_dataset import prepare_for_merge
from ovseg.config.published import translate
from ovseg.config.systems import unread_keys
from ovseg.config.values import fit, leaves, option_pairs
from ovseg.errors import OvsegError, shown

PUBLISHED = "__published__"  # attribute of a configuration: the published keys merged so far, and the processes


class CfgNode(Detectron2CfgNode):
    """Detectron2's configuration node: safe YAML only, values in any form that is clear, mistakes in one sentence."""

    def merge_from_file(
        self, cfg_filename: str | Path, allow_unsafe: bool = False, processes: int | None = None
    ) -> None:
        """Merge a YAML file and its ``_BASE_`` files; tags that run code are refused whatever ``allow_unsafe`` says.

        Files in OVSegmentor's published format are translated by :mod:`ovseg.config.published`. Their batch is that of
        one of ``processes``; None for the number that ``torchrun`` has started, or 1.

        Raises:
            OvsegError: missing file, bad YAML, executable tag, unknown key or wrong type of value.
        """
        prepare_for_merge(self)
        published, content = published_tree.split(load_layers(cfg_filename))
        with explain_config_errors(self, str(cfg_filename)):
            if fit(content.get("VERSION", self.VERSION), self.VERSION, "VERSION") != self.VERSION:
                raise ValueError(f"VERSION is {content['VERSION']}: only files of version {self.VERSION} are read")
            if published:
                self.__dict__[PUBLISHED] = published, _processes() if processes is None else processes
                self.merge_from_other_cfg(self._translated(published, str(cfg_filename)))
            self.merge_from_other_cfg(content)

    def published(self) -> dict[str, Any]:
        """Return the keys of the published format that were merged, nested; empty without such a file."""
        return published_tree.interpolated(self.__dict__.get(PUBLISHED, ({}, 1))[0], "the published keys")

    def _translated(self, tree: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return our keys of a published tree; a tree of options alone has the batch of the configuration."""
        known, processes = self.__dict__.get(PUBLISHED, ({}, _processes()))
        images = None if known else self.SOLVER.IMS_PER_BATCH
        return translate(published_tree.interpolated(tree, source), source, processes, images)

    def _merge_published(self, pairs: Sequence[tuple[str, Any]], source: str) -> None:
        """Merge options of the published format: what changes when they are over the file that was merged before."""
        known, processes = self.__dict__.get(PUBLISHED, ({}, _processes()))
        tree = published_tree.with_options(known, pairs, source)
        before = dict(leaves(self._translated(known, source)))
        changes = {k: v for k, v in leaves(self._translated(tree, source)) if k not in before or before[k] != v}
        for key, value in changes.items():
            self._set(key, value)
        if known:
            self.__dict__[PUBLISHED] = tree, processes

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Return :func:`ovseg.config.files.load_layers` of a file."""
        return load_layers(filename)

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another configuration, with values as :func:`ovseg.config.values.fit` takes them.

        Raises:
            KeyError, ValueError: unknown key, or a value of another type.
        """
        _merge(cfg_other, self)

    def merge_from_list(self, cfg_list: Sequence[Any] | Mapping[str, Any]) -> None:
        """Merge ``[KEY, VALUE, KEY, VALUE, ...]``, or another form that :func:`ovseg.config.values.option_pairs` takes.

        Keys of OVSegmentor's published format, such as ``train.epochs=20``, are translated as those of a file.
        ``TEST.PER_DATASET`` takes a mapping in YAML, and yields to keys that are set for all data sets: see
        :mod:`ovseg.config.per_dataset`.

        Raises:
            OvsegError: unknown key, missing value or wrong type of value.
        """
        with explain_config_errors(self, "the KEY VALUE options"):
            pairs = option_pairs(cfg_list, {key for key, _ in leaves(self)}, PER_DATASET)
            options = list(zip(pairs[0::2], pairs[1::2], strict=True))
            if published := [pair for pair in options if published_tree.is_published_key(pair[0])]:
                self._merge_published(published, "the KEY=VALUE options")
            ours = prepare_for_merge(self, [part for pair in options if pair not in published for part in pair])
            for key, value in zip(ours[0::2], ours[1::2], strict=True):
                self._set(f"{key}.{SHORT[key]}" if key in SHORT else key, value)

    def _set(self, key: str, value: Any) -> None:
        *parents, name = key.split(".")
        node = self
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name not in node:
            raise KeyError(f"Non-existent key: {key}")
        node[name] = value if key == PER_DATASET else _fit(value, node[name], key)


def _merge(other: Mapping[str, Any], cfg: Detectron2CfgNode, prefix: str = "") -> None:
    """Write ``other`` over ``cfg``; a section with nothing in it is left out."""
    for key, value in other.items():
        name, there = f"{prefix}{key}", cfg.get(key)
        if name in SHORT and isinstance(value, str):
            value = {SHORT[name]: value}
        if isinstance(there, dict) and isinstance(value, dict):
            _merge(value, there, f"{name}.")
        elif key in cfg:
            if value is not None or not isinstance(there, dict):
                cfg[key] = _fit(value, there, name)
        elif cfg.is_new_allowed() and isinstance(value, dict):
            cfg[key] = CfgNode(new_allowed=True)
            _merge(value, cfg[key], f"{name}.")
        elif cfg.is_new_allowed():
            cfg[key] = fit(copy.copy(value), None, name)
        else:
            raise KeyError(f"Non-existent config key: {name}")


def _fit(value: Any, there: Any, key: str) -> Any:
    """Return ``value`` for a key that holds ``there``; keys that are None by default accept any value."""
    if isinstance(there, dict):
        raise ValueError(f"{key} is {shown(value)}: it must hold keys, such as {key}.{next(iter(there), 'NAME')}")
    if isinstance(value, dict):
        raise ValueError(f"{key} is {shown(dict(value))}: it must be a value, not keys")
    default = DEFAULTS.get(key, there)
    if default is None and key in OPTIONAL:
        return None if value in (None, "", "None", "none", "null") else fit(value, OPTIONAL[key], key)
    return fit(value, default, key)


def _processes() -> int:
    """Return the number of processes that ``torchrun`` has started, or 1."""
    return max(1, int(os.environ.get("WORLD_SIZE") or 1))


def get_cfg() -> CfgNode:
    """Return Detectron2's default configuration with DeepLab's keys and all of ours."""
    base = get_detectron2_cfg()
    add_deeplab_config(base)
    cfg = CfgNode(base)
    for key, default in DEFAULTS.items():
        *parents, name = key.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[name] = CfgNode(new_allowed=True) if isinstance(default, dict) else default
    return cfg


def load_cfg(
    config_file: str | Path, opts: Sequence[Any] | Mapping[str, Any] = (), processes: int | None = None
) -> CfgNode:
    """Read ``config_file`` over the defaults, then ``opts`` over both.

    Args:
        config_file: YAML file, or the name of one in ``configs/``: see :func:`ovseg.config.files.find_config`.
        opts: alternating keys and values, ``KEY=VALUE`` texts, or a mapping, see :meth:`CfgNode.merge_from_list`.
        processes: of a training by a file in the published format, see :meth:`CfgNode.merge_from_file`.

    Raises:
        OvsegError: see :class:`CfgNode` and :func:`ovseg.config.limits.check_config`; or OVSegmentor's keys without
            effect, which files of the original may have, are changed.
    """
    cfg = get_cfg()
    cfg.merge_from_file(find_config(config_file), processes=processes)
    cfg.merge_from_list(opts)
    check_config(cfg)
    refuse_keys_without_effect(cfg, remedies=ovsegmentor.WITHOUT_EFFECT)
    return cfg


def joined_options(first: Sequence[Any] | Mapping[str, Any], second: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """Return ``[KEY, VALUE, ...]`` of two options in any form that ``opts`` of :func:`load_cfg` has; later ones win."""
    known = {key for key, _ in leaves(get_cfg())}
    return [part for options in (first, second) for part in option_pairs(options, known, PER_DATASET)]


def refuse_keys_without_effect(
    cfg: Detectron2CfgNode, used: Collection[str] = (), remedies: Mapping[str, str] | None = None
) -> None:
    """Raise :class:`OvsegError` when a key that has no effect was changed from its default.

    Args:
        used: keys that have an effect nevertheless.
        remedies: what to do in place of each key; default: those of :data:`WITHOUT_EFFECT`, and those that
            :mod:`ovseg.config.systems` lists for this system.
    """
    defaults = get_cfg()
    if remedies is None:
        remedies = WITHOUT_EFFECT | unread_keys(cfg.MODEL.META_ARCHITECTURE)
    for key, remedy in remedies.items():
        value, default = lookup(cfg, key), lookup(defaults, key)
        if value != default and key not in used:
            raise OvsegError(
                f"{key} = {shown(value)} has no effect in this system: remove it (the default is {default!r}); {remedy}"
            )
