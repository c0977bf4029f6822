"""Preparation of a process that trains or evaluates: loggers, the configuration on disk, seeds."""

from __future__ import annotations

import argparse
import logging
import random
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from rich.console import Console
from rich.logging import RichHandler

from ovseg.engine.checkpoints import CheckpointFolder
from ovseg.io.files import atomic_path

logger = logging.getLogger(__name__)


def owned_output(cfg: CfgNode) -> AbstractContextManager[None]:
    """Keep other runs out of ``OUTPUT_DIR``, see :meth:`CheckpointFolder.owned`."""
    return CheckpointFolder(cfg.OUTPUT_DIR).owned()


def setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up logging to the terminal (main process) and ``OUTPUT_DIR``, and write ``OUTPUT_DIR/config.yaml``.

    Raises:
        OvsegError: ``OUTPUT_DIR`` cannot be written.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        with atomic_path(folder / "config.yaml") as temporary:
            temporary.write_text(cfg.dump())
    comm.synchronize()  # the folder must be there for everyone's log
    for name in ("fvcore", "detectron2", "ovseg"):
        setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name)
    logger.info("process %d of %d, device %s", comm.get_rank(), comm.get_world_size(), cfg.MODEL.DEVICE)
    logger.info("arguments: %s", args)
    logger.info("full configuration in %s", folder / "config.yaml")
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def log_to_terminal() -> Console:
    """Log above a progress bar, in the main process only.

    Returns:
        the bar's console.
    """
    console = Console(stderr=True)
    if comm.is_main_process() and not logging.getLogger().handlers:
        logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    logging.getLogger("ovseg").setLevel(logging.INFO if comm.is_main_process() else logging.ERROR)
    return console


def seed_everything(seed: int) -> None:
    """Seed the generators of torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
