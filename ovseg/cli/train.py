"""``ovseg train``, ``ovseg evaluate`` and the work of ``train_net.py``, ``main_*.py``: training and evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.config.files import check_file
from ovseg.errors import OvsegError

if TYPE_CHECKING:
    from ovseg.config import CfgNode


PARSED_HERE = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
OF_TRAIN_NET = """Train and evaluate: Detectron2's command line, with KEY VALUE pairs of the configuration anywhere.

python train_net.py --config-file configs/toy/ovseg_toy.yaml --num-gpus 0
python train_net.py --config-file CONFIG --num-gpus 8 --eval-only MODEL.WEIGHTS checkpoint.pth
torchrun --nproc-per-node 8 train_net.py --config-file CONFIG
# the first of two machines; on the second one, --machine-rank 1
python train_net.py --config-file CONFIG --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://FIRST:29500
"""
OF_TRAIN = """Train the model of a configuration, then evaluate it; KEY VALUE pairs of the configuration stand anywhere.

ovseg train --config-file configs/toy/ovseg_toy.yaml --num-gpus 0 OUTPUT_DIR output/mine
ovseg train --config-file configs/toy/ovseg_toy.yaml --num-gpus 0 OUTPUT_DIR output/mine --resume
torchrun --nproc-per-node 8 -m ovseg train --config-file CONFIG
"""
OF_EVALUATE = """Evaluate a model on data sets; KEY VALUE pairs of the configuration stand anywhere.

ovseg evaluate --config-file configs/toy/ovseg_toy.yaml --num-gpus 0
ovseg evaluate --config-file CONFIG --num-gpus 8 MODEL.WEIGHTS checkpoint.pth DATASETS.TEST ade20k_sem_seg_val
"""


def train(context: typer.Context) -> None:
    """Train the model of a configuration: train_net.py's options and KEY VALUE pairs; --help lists them."""
    run(train_parser("ovseg train", OF_TRAIN), context.args)


def evaluate(context: typer.Context) -> None:
    """Evaluate a model on data sets: train_net.py's options and KEY VALUE pairs; --help lists them."""
    run(train_parser("ovseg evaluate", OF_EVALUATE), [*context.args, "--eval-only"])


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the ``ovseg`` command."""

    def error(self, message: str) -> NoReturn:
        raise OvsegError(f"{message} ({self.prog} --help lists what there is)")


def train_parser(prog: str | None = None, description: str = OF_TRAIN_NET) -> argparse.ArgumentParser:
    """Return the parser of Detectron2's tools, to be used by :func:`ovseg.cli.options.parse_with_options`."""
    kind = argparse.ArgumentParser if prog is None else _Parser
    parser = kind(prog, None, description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="FILE", help="one of configs/*.yaml")
    parser.add_argument("--resume", action="store_true", help="go on from what OUTPUT_DIR holds")
    only = argparse.SUPPRESS if description == OF_EVALUATE else "evaluate MODEL.WEIGHTS, do not train"
    parser.add_argument("--eval-only", action="store_true", help=only)
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of this machine; 0: the CPU (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all (default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of the first of several machines")
    parser.add_argument(
        "--dist-timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="the machines wait so long for each other at the start (default: 300)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override configuration keys; KEY=VALUE, too")
    return parser


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> None:
    """Train or evaluate as a command line of ``parser`` says; None for this process's.

    Raises:
        OvsegError: the options or the configuration cannot work, or a process has failed.
    """
    args = parse_with_options(parser, argv, bare=True)
    if not args.config_file:
        raise OvsegError("--config-file is missing: give one of configs/*.yaml")
    check_file(args.config_file)
    launch_all(read_cfg(args, args.opts), args)


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
        args: has ``eval_only``, ``resume``, ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url`` and
            ``dist_timeout``.

    Raises:
        OvsegError: the configuration cannot work, or a process has failed.
    """
    from ovseg.engine.launch import World, choose_device, launch

    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    cfg.freeze()
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    here = max(args.num_gpus, 1)
    world = World(here, args.num_machines, args.machine_rank, args.dist_url, cuda, args.dist_timeout)
    launch(main, world, (cfg, args))
