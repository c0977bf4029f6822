"""The work of ``train_net.py``, ``main_pretrain.py`` and ``main_seg.py``: training and evaluation by processes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ovseg

if TYPE_CHECKING:
    from ovseg.config import CfgNode


def main(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train or evaluate, in each process of the run."""
    ovseg.register()
    from ovseg.engine.run import evaluate, train
    from ovseg.engine.setup import owned_output, setup

    with owned_output(cfg):
        setup(cfg, args)
        (evaluate if args.eval_only else train)(cfg, resume=args.resume)


def read_cfg(args: argparse.Namespace, opts: Sequence[Any]) -> CfgNode:
    """Return the configuration of a run, for the number of processes that the command line or ``torchrun`` gives.

    Args:
        args: has ``config_file``, ``num_gpus`` and ``num_machines``.
        opts: override the file.
    """
    ovseg.register()
    from ovseg.config import load_cfg
    from ovseg.engine.launch import started_by_torchrun

    processes = None if started_by_torchrun() else max(args.num_gpus, 1) * args.num_machines
    return load_cfg(args.config_file, opts, processes)


def launch_all(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Start the processes that the command line asks for.

    Args:
        cfg: the configuration; its device is set, and it is frozen.
        args: has ``eval_only``, ``resume``, ``num_gpus``, ``num_machines``, ``machine_rank`` and ``dist_url``.

    Raises:
        OvsegError: the configuration cannot work, or a process has failed.
    """
    from ovseg.engine.launch import World, choose_device, launch

    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    cfg.freeze()
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    world = World(max(args.num_gpus, 1), args.num_machines, args.machine_rank, args.dist_url, cuda=cuda)
    launch(main, world, (cfg, args))
