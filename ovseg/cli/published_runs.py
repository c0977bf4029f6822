"""The work of ``main_pretrain.py`` and ``main_seg.py``: the published options as those of ``train_net.py``."""

from __future__ import annotations

import argparse
import logging
import os

from ovseg.cli.published_demo import FLAGS, check_checkpoint, options_of, read_modes
from ovseg.cli.train import launch_all, read_cfg
from ovseg.config import CfgNode
from ovseg.errors import argument_names

logger = logging.getLogger("ovseg")


@argument_names(FLAGS)
def pretrain(args: argparse.Namespace) -> None:
    """Train as the options of ``main_pretrain.py`` say; with ``--eval``, evaluate.

    A run goes on from the newest checkpoint in its folder, unless ``checkpoint.auto_resume`` is false.

    Raises:
        OvsegError: the options or the configuration cannot work, or a process has failed.
    """
    opts = options_of(args)
    if args.batch_size is not None:
        opts += ["data.train.batch_size", args.batch_size]
    if args.amp_opt_level:
        opts += ["train.amp_opt_level", args.amp_opt_level]
    if args.wandb:
        opts += ["WANDB.ENABLED", True]
    if args.keep is not None:
        logger.warning("--keep %d has no effect: a run keeps its checkpoints as train_net.py does", args.keep)
    args.config_file, args.num_machines, args.machine_rank, args.dist_timeout = args.cfg, 1, 0, 300
    cfg = _placed(read_cfg(args, opts), args)
    args.eval_only, given = args.eval, args.resume
    auto = (cfg.published().get("checkpoint") or {}).get("auto_resume", True)
    args.resume = bool(auto) and not args.eval and _has_checkpoints(cfg)
    if args.eval:
        check_checkpoint(cfg, args.cfg)
    if args.resume:
        unused = f", not from {given}: give another --output, or checkpoint.auto_resume=false" if given else ""
        logger.warning("%s holds checkpoints: the run goes on from the newest one%s", cfg.OUTPUT_DIR, unused)
    launch_all(cfg, args)


@argument_names(FLAGS)
def evaluate(args: argparse.Namespace) -> None:
    """Evaluate segmentation as the options of ``main_seg.py`` say, and write the images of ``--vis``.

    Raises:
        OvsegError: there is no checkpoint, the options or the configuration cannot work, or an image cannot be read.
    """
    args.config_file, args.num_machines, args.machine_rank, args.dist_timeout = args.cfg, 1, 0, 300
    args.dist_url = "auto"
    opts = [*options_of(args), "TEST.TASKS", ["seg"], "TEST.SAVE_BEST", []]
    cfg = _placed(read_cfg(args, opts), args)
    check_checkpoint(cfg, args.cfg)
    if modes := args.vis or cfg.published().get("vis"):
        from ovseg.data.protocol import class_names_of

        most_classes = max((len(class_names_of(name)) for name in cfg.DATASETS.TEST), default=0)
        cfg.TEST.VIS_MODES = list(read_modes(modes, most_classes))
    args.eval_only, args.resume = True, False
    launch_all(cfg, args)


def _placed(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Return the configuration with the folder of ``--output`` and ``--tag``."""
    cfg.OUTPUT_DIR = os.path.join(args.output or cfg.OUTPUT_DIR, args.tag or "").rstrip("/")
    return cfg


def _has_checkpoints(cfg: CfgNode) -> bool:
    from ovseg.engine.checkpoints import CheckpointFolder

    return bool(CheckpointFolder(cfg.OUTPUT_DIR))
