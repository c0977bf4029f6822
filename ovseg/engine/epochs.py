"""The length of a training in epochs, passes over the data: the keys that count them, in iterations."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode

from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)


def in_iterations(cfg: CfgNode, size: int) -> CfgNode:
    """Return a configuration whose training counts iterations alone.

    With ``SOLVER.MAX_EPOCHS``, ``MAX_ITER``, ``WARMUP_ITERS``, ``CHECKPOINT_PERIOD`` and ``TEST.EVAL_PERIOD`` become
    so many epochs, each of them as many iterations as there are whole batches, rounded down to whole steps of the
    optimiser (``ACCUMULATION_STEPS``). These are numbers alone: which samples a batch holds is up to the loader. That
    of image-text pairs leaves out what fills no batch, so that without accumulation its permutations are these epochs;
    the other ones go on with the next permutation within a batch.

    Args:
        size: samples of the training data.

    Returns:
        ``cfg`` itself without ``MAX_EPOCHS``, else a frozen copy without it.

    Raises:
        OvsegError: there are fewer samples than a step of the optimiser takes.
    """
    if not cfg.SOLVER.MAX_EPOCHS:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    solver, steps = cfg.SOLVER, max(cfg.SOLVER.ACCUMULATION_STEPS, 1)
    epoch = size // (solver.IMS_PER_BATCH * steps) * steps
    if not epoch:
        accumulated = f" x ACCUMULATION_STEPS, {steps}" if steps > 1 else ""
        raise OvsegError(
            f"SOLVER.MAX_EPOCHS is {solver.MAX_EPOCHS}, but the {size} training samples are fewer than IMS_PER_BATCH, "
            f"{solver.IMS_PER_BATCH}{accumulated}: lower it, or set MAX_EPOCHS to 0 and MAX_ITER"
        )
    text = "%d epochs of %d iterations: %d training samples in batches of %d"
    logger.info(text, solver.MAX_EPOCHS, epoch, size, solver.IMS_PER_BATCH)
    solver.MAX_ITER, solver.WARMUP_ITERS = solver.MAX_EPOCHS * epoch, solver.WARMUP_EPOCHS * epoch
    solver.CHECKPOINT_PERIOD *= epoch
    cfg.TEST.EVAL_PERIOD *= epoch
    solver.MAX_EPOCHS = solver.WARMUP_EPOCHS = 0
    cfg.freeze()
    return cfg
