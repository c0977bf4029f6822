#!/usr/bin/env python3
"""Train and evaluate: Detectron2's command line.

python train_net.py --config-file configs/toy/ovseg_toy.yaml --num-gpus 0
python train_net.py --config-file CONFIG --num-gpus 8 --eval-only MODEL.WEIGHTS checkpoint.pth
torchrun --nproc-per-node 8 train_net.py --config-file CONFIG
"""

from __future__ import annotations

import argparse
import logging
import os
import signal

if __name__ == "__main__":  # while libraries load, which takes seconds, nothing has to be cleared away
    signal.signal(signal.SIGINT, lambda *_: os.write(2, b"interrupted\n") and os._exit(130))

from ovseg.config import CfgNode, load_cfg
from ovseg.engine.launch import World, choose_device, launch
from ovseg.engine.run import evaluate, train
from ovseg.engine.setup import default_argument_parser, owned_output, setup
from ovseg.errors import OvsegError, user_errors


def main(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What every process runs."""
    with owned_output(cfg):
        setup(cfg, args)
        (evaluate if args.eval_only else train)(cfg, resume=args.resume)


def configuration(args: argparse.Namespace) -> CfgNode:
    """The configuration that the command line asks for, with the device it runs on."""
    if not args.config_file:
        raise OvsegError("--config-file is missing: give one of configs/*.yaml")
    cfg = load_cfg(args.config_file, args.opts or [])
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    cfg.freeze()
    return cfg


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = default_argument_parser(__doc__)
    parser.set_defaults(dist_url="auto")
    arguments = parser.parse_args()
    with user_errors():
        config = configuration(arguments)
        world = World(
            max(arguments.num_gpus, 1),
            arguments.num_machines,
            arguments.machine_rank,
            arguments.dist_url,
            cuda=config.MODEL.DEVICE == "cuda",
        )
        launch(main, world, (config, arguments))
