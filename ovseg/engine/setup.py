"""What a process does before it trains or evaluates: loggers, the configuration on disk, seeds."""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ovseg.io.files import atomic_path, explained_writing, locked_folder

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def owned_output(cfg: CfgNode) -> Iterator[None]:
    """Keep other runs out of ``OUTPUT_DIR``; the main process holds it for all of its run.

    Raises:
        OvsegError: another run is at work there, it cannot be written, or the disk gets full within the block.
    """
    with contextlib.ExitStack() as stack:
        if comm.is_main_process():
            stack.enter_context(explained_writing(Path(cfg.OUTPUT_DIR)))
            stack.enter_context(locked_folder(cfg.OUTPUT_DIR, "choose another OUTPUT_DIR"))
        yield


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


def seed_everything(seed: int) -> None:
    """Seed the generators of torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
