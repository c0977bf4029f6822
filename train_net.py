#!/usr/bin/env python3
"""Train and evaluate: Detectron2's command line, with KEY VALUE pairs of the configuration anywhere in it.

python train_net.py --config-file configs/toy/ovseg_toy.yaml --num-gpus 0
python train_net.py --config-file CONFIG --num-gpus 8 --eval-only MODEL.WEIGHTS checkpoint.pth
torchrun --nproc-per-node 8 train_net.py --config-file CONFIG
"""

from __future__ import annotations

import argparse
import logging

from ovseg.cli.options import parse_with_options
from ovseg.cli.train import launch_all, read_cfg
from ovseg.errors import OvsegError, user_errors


def build_parser() -> argparse.ArgumentParser:
    """Return the options of Detectron2's tools."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="FILE", help="one of configs/*.yaml")
    parser.add_argument("--resume", action="store_true", help="go on from what OUTPUT_DIR holds")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of this machine; 0: the CPU (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all (default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of the first of several machines")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override configuration keys; KEY=VALUE, too")
    return parser


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    arguments = parse_with_options(build_parser(), bare=True)
    with user_errors():
        if not arguments.config_file:
            raise OvsegError("--config-file is missing: give one of configs/*.yaml")
        launch_all(read_cfg(arguments, arguments.opts), arguments)
