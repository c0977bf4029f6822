"""Training and evaluation from a configuration, as ``train_net.py`` runs them."""

from __future__ import annotations

import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from torch import nn

from ovseg.checkpoint import load_model, skip_initialisation
from ovseg.clip.bert import check_texts
from ovseg.config.limits import check_kind, needs_checkpoint
from ovseg.data.catalog import check_prepared
from ovseg.data.loader import build_train_loader
from ovseg.data.mapper import training_set
from ovseg.engine.best import BestCheckpoints
from ovseg.engine.checkpoints import FINAL, CheckpointFolder, numbered
from ovseg.engine.epochs import in_iterations
from ovseg.engine.hooks import Every, SkippedRows
from ovseg.engine.metrics import MetricsWriter, start_wandb
from ovseg.engine.setup import owned_output, seed_everything
from ovseg.engine.solver import build_lr_scheduler, build_optimizer
from ovseg.engine.trainer import Trainer, parallel
from ovseg.errors import OvsegError
from ovseg.evaluation.runner import check_evaluation, evaluate_all, evaluates

logger = logging.getLogger(__name__)

REMEDY = (
    "lower SOLVER.BASE_LR, raise SOLVER.WARMUP_ITERS or set SOLVER.AMP.ENABLED False, and resume from the last "
    "checkpoint with --resume"
)


def train(cfg: CfgNode, resume: bool = False) -> OrderedDict[str, Any]:
    """Train as ``cfg`` says, and evaluate at the end.

    Args:
        resume: continue from the newest checkpoint in ``OUTPUT_DIR``; without one, start from ``MODEL.WEIGHTS``.

    Returns:
        results of the last evaluation (empty outside the main process, or without ``DATASETS.TEST``).

    Raises:
        OvsegError: see the parts; nothing is half-written in ``OUTPUT_DIR`` whenever it comes.
    """
    with owned_output(cfg):
        return _train(cfg, resume)


def _train(cfg: CfgNode, resume: bool) -> OrderedDict[str, Any]:
    check_kind(cfg, "MODEL.META_ARCHITECTURE")
    for name in cfg.DATASETS.TRAIN:
        check_prepared(name)
    if cfg.MODEL.META_ARCHITECTURE not in ("OpenSeg", "OVSegmentor"):  # they train on no classes
        training_set(cfg)  # the number of classes, before anything is built
    if cfg.MODEL.META_ARCHITECTURE == "OVSegmentor":
        check_texts(cfg.MODEL.OVSEGMENTOR.TEXT_ENCODER, cfg.INPUT.TEXT_AUG.MAX_SEQ_LEN)
    single_view = _single_view(cfg)
    check_evaluation(single_view)  # it is needed after hours only
    results: OrderedDict[str, Any] = OrderedDict()

    def evaluate_now(model: nn.Module, iteration: int) -> OrderedDict[str, Any]:
        results.clear()
        results.update(evaluate_all(single_view, model, resume=resume, iteration=iteration))
        return results

    fit(
        cfg,
        resume,
        make_loader=lambda seed, start: build_train_loader(cfg, seed=seed, start=start),
        make_model=lambda found: load_model(cfg) if found is None else _restored_model(cfg, *found),
        evaluate=evaluate_now if evaluates(cfg) else None,
    )
    return results


def fit(
    cfg: CfgNode,
    resume: bool,
    *,
    make_loader: Callable[[int, int], Iterable[Any]],
    make_model: Callable[[tuple[Path, dict[str, Any]] | None], nn.Module],
    state_of: Callable[[nn.Module], dict[str, Any]] = nn.Module.state_dict,
    evaluate: Callable[[nn.Module, int], OrderedDict[str, Any]] | None = None,
) -> None:
    """Train a model by ``cfg.SOLVER``, with checkpoints and metrics in ``OUTPUT_DIR``, which this process must own.

    Args:
        cfg: the configuration.
        resume: continue from the newest checkpoint in ``OUTPUT_DIR``, if there is one.
        make_loader: called with the seed and the number of samples used so far, it returns endless batches of a
            ``dataset``, whose length counts where ``SOLVER.MAX_EPOCHS`` is set. Its attribute ``skipped``, if it has
            one, is the number of rows that it could not use.
        make_model: called with the path and the content of the checkpoint, or None, it returns the model, whose call
            with a batch returns losses. Its method ``update_teacher``, if it has one, is called after each iteration.
        state_of: returns what a checkpoint holds of the model.
        evaluate: called every ``TEST.EVAL_PERIOD`` iterations with the model and the number of iterations.
    """
    checkpoints = CheckpointFolder(cfg.OUTPUT_DIR)
    found = _find_checkpoint(checkpoints, resume)
    seed, position = _progress(cfg, found)
    seed_everything(seed)  # the same in all processes: the model starts the same
    loader = make_loader(seed, position)
    if cfg.SOLVER.MAX_EPOCHS:
        cfg = in_iterations(cfg, len(loader.dataset))
    model = make_model(found)
    if cfg.SOLVER.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    dtype = autocast_dtype(cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE)
    trainer = Trainer(
        parallel(model.train()),
        loader,
        optimizer,
        scheduler,
        seed=seed,
        autocast_dtype=dtype,
        scale_losses=dtype is torch.float16,
        remedy=REMEDY,
        accumulation=max(cfg.SOLVER.ACCUMULATION_STEPS, 1),
    )
    if trainer.accumulation > 1:  # the schedule starts before the first step of the optimiser
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
    best = BestCheckpoints(checkpoints.folder, cfg.TEST.SAVE_BEST if evaluate else (), resume=found is not None)
    skipped = SkippedRows(loader, cfg.LOG_PERIOD) if hasattr(loader, "skipped") else None
    start = 0
    if found is not None:
        path, content = found
        start = content["iteration"] + 1
        with checkpoints.reading(path):
            trainer.load_state_dict(content)
            if skipped is not None:
                skipped.before = int(content.get(SkippedRows.NAME, 0))

    def save(done: int) -> None:
        counts = {} if skipped is None else {SkippedRows.NAME: skipped.total()}
        if comm.is_main_process():
            used = position + (done - start) * cfg.SOLVER.IMS_PER_BATCH
            name = FINAL if done >= cfg.SOLVER.MAX_ITER else numbered(done - 1)
            checkpoints.save(name, {"model": state_of(model), "samples_used": used, **counts, **trainer.state_dict()})

    def evaluate_now() -> OrderedDict[str, Any]:
        done = min(trainer.iter + 1, cfg.SOLVER.MAX_ITER)
        results = evaluate(model, done)
        best.update(results, done, lambda: state_of(model))
        return results

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer, scheduler),
            Every(1, lambda done: model.update_teacher()) if hasattr(model, "update_teacher") else None,
            skipped,
            Every(cfg.SOLVER.CHECKPOINT_PERIOD, save),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate_now) if evaluate else None,
            hooks.PeriodicWriter(_writers(cfg), cfg.LOG_PERIOD) if comm.is_main_process() else None,
        ]
    )
    trainer.train(start, cfg.SOLVER.MAX_ITER)


def evaluate(cfg: CfgNode, resume: bool = False) -> OrderedDict[str, Any]:
    """Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

    Args:
        resume: evaluate the newest checkpoint in ``OUTPUT_DIR`` instead, if there is one; and leave out images that an
            interrupted run has evaluated with the same weights, settings and data.

    Returns:
        results by data set, empty outside the main process.

    Raises:
        OvsegError: no weights given, or see the parts.
    """
    with owned_output(cfg):
        return _evaluate(cfg, resume)


def _evaluate(cfg: CfgNode, resume: bool) -> OrderedDict[str, Any]:
    check_kind(cfg, "MODEL.META_ARCHITECTURE")
    check_evaluation(cfg)
    found = CheckpointFolder(cfg.OUTPUT_DIR).load_newest() if resume else None
    if found is None and not cfg.MODEL.WEIGHTS and needs_checkpoint(cfg):
        raise OvsegError(
            "MODEL.WEIGHTS is empty, so there is nothing to evaluate: add MODEL.WEIGHTS checkpoint.pth, or --resume "
            "for the newest checkpoint in OUTPUT_DIR"
        )
    seed_everything(max(cfg.SEED, 0))
    model = load_model(cfg, complete=True) if found is None else _restored_model(cfg, *found)
    if found is not None:
        cfg = _with_weights(cfg, found[0])  # what the results are of
    return evaluate_all(cfg, model, resume=resume)


def autocast_dtype(enabled: bool, device: str) -> torch.dtype | None:
    """Return the type of mixed precision: float16 on CUDA, bfloat16 elsewhere; None when not enabled."""
    if not enabled:
        return None
    return torch.float16 if torch.device(device).type == "cuda" else torch.bfloat16


def _single_view(cfg: CfgNode) -> CfgNode:
    """Return the configuration of the evaluations while a model trains."""
    single_view = cfg.clone()
    single_view.defrost()
    single_view.TEST.ORACLE = "none"  # an analysis, for --eval-only
    # many times the cost: for --eval-only (specification 10.2)
    single_view.TEST.AUG.ENABLED = single_view.TEST.MULTI_SCALE.ENABLED = False
    return single_view


def _find_checkpoint(checkpoints: CheckpointFolder, resume: bool) -> tuple[Path, dict[str, Any]] | None:
    if not resume:
        if checkpoints:
            logger.warning(
                "%s holds checkpoints of another run, which will be overwritten: --resume would continue it",
                checkpoints.folder,
            )
        return None
    found = checkpoints.load_newest()
    if found is None:
        logger.warning("--resume: no checkpoint in %s, starting from MODEL.WEIGHTS", checkpoints.folder)
    return found


def _progress(cfg: CfgNode, found: tuple[Path, dict[str, Any]] | None) -> tuple[int, int]:
    """Return the seed of the run and the number of samples used; a run without a seed draws one and keeps it."""
    if found is not None:
        path, content = found
        if cfg.SEED >= 0 and content["seed"] != cfg.SEED:
            logger.warning(
                "the run in %s has seed %d, which it keeps; SEED %d is ignored", path, content["seed"], cfg.SEED
            )
        return content["seed"], content["samples_used"]
    drawn = int.from_bytes(os.urandom(4), "little") >> 1
    return (cfg.SEED if cfg.SEED >= 0 else comm.all_gather(drawn)[0]), 0


def _restored_model(cfg: CfgNode, path: Path, content: dict[str, Any]) -> nn.Module:
    """Build the model with the state of a training checkpoint."""
    with skip_initialisation():
        model = build_model(_with_weights(cfg, path))
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise OvsegError(
            f"checkpoint {path} was made with another configuration ({reason}): use the same one, or another OUTPUT_DIR"
        ) from error
    if hasattr(model, "clip_adapter"):
        model.clip_adapter.share_equal_tensors()
    logger.info("continuing from %s, iteration %d", path, content["iteration"] + 1)
    return model


def _with_weights(cfg: CfgNode, path: Path) -> CfgNode:
    """Return the configuration with the checkpoint as ``MODEL.WEIGHTS``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    return cfg


def _writers(cfg: CfgNode) -> list[EventWriter]:
    folder = Path(cfg.OUTPUT_DIR)
    run = start_wandb(cfg) if cfg.WANDB.ENABLED else None
    return [CommonMetricPrinter(cfg.SOLVER.MAX_ITER), MetricsWriter(folder / "metrics.json", folder, wandb_run=run)]
