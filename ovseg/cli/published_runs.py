"""The work of ``main_pretrain.py`` and ``main_seg.py``: the published options as those of ``train_net.py``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovseg.cli.published_demo import BACKGROUND, check_checkpoint, read_modes, write_modes
from ovseg.cli.train import launch_all, read_cfg
from ovseg.config import CfgNode
from ovseg.errors import OvsegError
from ovseg.result.modes import ModeWriter, voc_palette

logger = logging.getLogger("ovseg")


def pretrain(args: argparse.Namespace) -> None:
    """Train as the options of ``main_pretrain.py`` say; with ``--eval``, evaluate.

    A run goes on from the newest checkpoint in its folder, unless ``checkpoint.auto_resume`` is false.

    Raises:
        OvsegError: the options or the configuration cannot work, or a process has failed.
    """
    opts = [*args.opts]
    if args.batch_size is not None:
        opts += ["data.train.batch_size", args.batch_size]
    if args.amp_opt_level:
        opts += ["train.amp_opt_level", args.amp_opt_level]
    if args.wandb:
        opts += ["WANDB.ENABLED", True]
    if args.keep is not None:
        logger.warning("--keep %d has no effect: a run keeps its checkpoints as train_net.py does", args.keep)
    args.config_file, args.num_machines, args.machine_rank = args.cfg, 1, 0
    cfg = _placed(read_cfg(args, _with_weights(opts, args)), args)
    args.eval_only = args.eval
    auto = cfg.published().get("checkpoint", {}).get("auto_resume", True)
    args.resume = bool(auto) and not args.eval and _has_checkpoints(cfg)
    if args.eval:
        check_checkpoint(cfg, args.cfg)
    if args.resume:
        logger.warning("%s holds checkpoints: the run goes on from the newest one", cfg.OUTPUT_DIR)
    launch_all(cfg, args)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate segmentation as the options of ``main_seg.py`` say, then write the images of ``--vis``.

    Raises:
        OvsegError: there is no checkpoint, the options or the configuration cannot work, or an image cannot be read.
    """
    args.config_file, args.num_machines, args.machine_rank, args.dist_url = args.cfg, 1, 0, "auto"
    opts = [*_with_weights(args.opts, args), "TEST.TASKS", ["seg"], "TEST.SAVE_BEST", []]
    cfg = _placed(read_cfg(args, opts), args)
    check_checkpoint(cfg, args.cfg)
    modes = _checked_modes(args.vis, cfg) if args.vis else ()
    args.eval_only, args.resume = True, False
    launch_all(cfg, args)
    if modes and int(os.environ.get("RANK", 0)) == 0:
        _draw(cfg, args, opts, modes)


def _checked_modes(modes: Sequence[str], cfg: CfgNode) -> tuple[str, ...]:
    """Return the modes of ``--vis``, each once, after a check of the data sets' numbers of classes."""
    from ovseg.data.protocol import class_names_of

    return read_modes(modes, max((len(class_names_of(name)) for name in cfg.DATASETS.TEST), default=0))


def _draw(cfg: CfgNode, args: argparse.Namespace, opts: list[Any], modes: tuple[str, ...]) -> None:
    """Write the images of the modes for every image of the data sets."""
    from detectron2.data import DatasetCatalog

    from ovseg.data.custom.names import folder_name
    from ovseg.data.protocol import configured_protocol
    from ovseg.segmenter import Segmenter

    segmenter = Segmenter.from_config(args.cfg, opts=opts, device=cfg.MODEL.DEVICE)
    for name in cfg.DATASETS.TEST:
        protocol = configured_protocol(cfg, name)
        if protocol.to_class is not None:
            raise OvsegError(
                f"--vis: the words of {name} are not its classes: leave --vis out, or use another data set"
            )
        folder = Path(cfg.OUTPUT_DIR) / "vis_imgs"
        if len(cfg.DATASETS.TEST) > 1:
            folder /= folder_name(name, cfg.DATASETS.TEST)
        names = protocol.class_names
        background = names[0] == BACKGROUND
        writer = ModeWriter(folder, modes, names, voc_palette()[0 if background else 1 :], background)
        jobs = [(Path(record["file_name"]), Path(record["file_name"]).stem) for record in DatasetCatalog.get(name)]
        if failures := write_modes(segmenter, jobs, protocol.vocabulary, writer):
            raise OvsegError(f"{len(failures)} of {len(jobs)} images of {name} could not be drawn")


def _with_weights(opts: list[Any], args: argparse.Namespace) -> list[Any]:
    return [*opts, *(["MODEL.WEIGHTS", args.resume] if args.resume else [])]


def _placed(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Return the configuration with the folder of ``--output`` and ``--tag``."""
    cfg.OUTPUT_DIR = os.path.join(args.output or cfg.OUTPUT_DIR, args.tag or "").rstrip("/")
    return cfg


def _has_checkpoints(cfg: CfgNode) -> bool:
    from ovseg.engine.checkpoints import CheckpointFolder

    return bool(CheckpointFolder(cfg.OUTPUT_DIR))
