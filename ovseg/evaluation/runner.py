"""Evaluation of a model on data sets, in one or several processes, with a progress bar."""

from __future__ import annotations

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators, inference_context
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ovseg.config.limits import check_config
from ovseg.config.per_dataset import config_of, settings_of
from ovseg.config.systems import WITHOUT_MASKS
from ovseg.data.catalog import check_per_dataset, check_prepared
from ovseg.data.custom.names import folder_name
from ovseg.data.loader import SampleLoader, test_dataset, test_loader
from ovseg.data.protocol import configured_protocol
from ovseg.errors import OvsegError
from ovseg.evaluation.crf import DenseCRF
from ovseg.evaluation.dataset_settings import check_settings, dataset_settings
from ovseg.evaluation.drawings import check_drawings, draws_groups, mode_drawings
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.grounding import GroundingEvaluator, PresentWords, check_grounding
from ovseg.evaluation.identity import fingerprint, model_digest
from ovseg.evaluation.oracle_model import check_oracle, oracle_model
from ovseg.evaluation.partial import PartialEvaluation, remove_parts
from ovseg.evaluation.predictions import PNG_FOLDER, RLE_FILE, WORST_FILE, PngPredictions, RlePredictions, WorstImages
from ovseg.evaluation.proposal_recall import ProposalRecallEvaluator
from ovseg.evaluation.record import finished_record, results_record
from ovseg.evaluation.report import print_results, write_results
from ovseg.evaluation.sem_seg import Keeper, SemSegEvaluator
from ovseg.evaluation.sg_iou import sg_scores
from ovseg.evaluation.sg_table import build_table, read_table
from ovseg.evaluation.tally import Stopwatch, add_other_processes
from ovseg.evaluation.tta import augmented_model
from ovseg.evaluation.zero_shot import FOLDER, TASK, check_zero_shot, zero_shot_classification
from ovseg.io.progress import progress_bar
from ovseg.meta_arch.per_pixel import PerPixel

logger = logging.getLogger(__name__)

_NO_MASKS = "TEST.PROPOSAL_RECALL is True, but this model has no masks: set it to False"


def check_evaluation(cfg: CfgNode) -> None:
    """Check the settings of an evaluation before the model is built, which may take minutes.

    Raises:
        OvsegError: a data set is not prepared, or an option cannot work.
    """
    check_config(cfg)
    check_zero_shot(cfg)
    if cfg.TEST.PROPOSAL_RECALL and (
        cfg.MODEL.META_ARCHITECTURE in WITHOUT_MASKS
        or (cfg.MODEL.META_ARCHITECTURE == "OpenSeg" and cfg.MODEL.OPENSEG.TEST_PROPOSALS == "none")
    ):
        raise OvsegError(_NO_MASKS)
    check_oracle(cfg)
    check_grounding(cfg)
    if cfg.TEST.BACKGROUND_THRESHOLD is not None and cfg.TEST.DENSE_CRF:
        raise OvsegError(
            "TEST.BACKGROUND_THRESHOLD is a limit of the model's scores, which a CRF replaces: set TEST.DENSE_CRF to "
            "False, or the threshold to None"
        )
    check_per_dataset(cfg)
    for dataset_name in segmented(cfg):
        check_prepared(dataset_name)
        protocol = configured_protocol(cfg, dataset_name)
        check_drawings(cfg, len(protocol.class_names))
        if cfg.METRIC == "SG-IoU" and cfg.TEST.SG_IOU_TABLE:
            read_table(cfg.TEST.SG_IOU_TABLE, protocol)


def evaluate_all(
    cfg: CfgNode,
    model: nn.Module,
    *,
    resume: bool = False,
    iteration: int | None = None,
    limit: int | None = None,
) -> OrderedDict[str, OrderedDict]:
    """Evaluate on every data set of ``DATASETS.TEST``; see :func:`evaluate_dataset`.

    With ``cls`` in ``TEST.TASKS``, images are classified, too, see :mod:`ovseg.evaluation.zero_shot`; without ``seg``,
    nothing else is done.

    Returns:
        results by data set, that of the classification as "zero_shot"; each is empty outside the main process.

    Raises:
        OvsegError: no data set is named, a data set is not prepared, or an option cannot work for it; all are checked
            before the first evaluation starts.
    """
    if not evaluates(cfg):
        raise OvsegError("DATASETS.TEST is empty: name the data sets to evaluate on")
    check_evaluation(cfg)
    model = _bare(model)
    for dataset_name in segmented(cfg):
        check_settings(model, settings_of(cfg, dataset_name))
        if cfg.METRIC == "SG-IoU":
            build_table(cfg, model, configured_protocol(cfg, dataset_name))
    options = {"resume": resume, "iteration": iteration, "digest": model_digest(model), "limit": limit}
    results = OrderedDict((name, evaluate_dataset(cfg, model, name, **options)) for name in segmented(cfg))
    if TASK in cfg.TEST.TASKS:
        scores = zero_shot_classification(cfg, model, iteration)
        results[FOLDER] = OrderedDict(scores if comm.is_main_process() else ())
    return results


def segmented(cfg: CfgNode) -> Sequence[str]:
    """Return the data sets that an evaluation segments."""
    return cfg.DATASETS.TEST if "seg" in cfg.TEST.TASKS else ()


def evaluates(cfg: CfgNode) -> bool:
    """Return whether an evaluation has anything to do."""
    return bool(segmented(cfg)) or TASK in cfg.TEST.TASKS


def evaluate_dataset(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    *,
    resume: bool = False,
    iteration: int | None = None,
    digest: str | None = None,
    limit: int | None = None,
) -> OrderedDict[str, dict[str, float]]:
    """Evaluate on one data set; every process of a distributed run calls it and evaluates its share of the images.

    The main process prints a table and writes into ``<OUTPUT_DIR>/inference/<dataset>``: ``per_class.csv``,
    ``confusion.npz``, with TEST.SAVE_PREDICTIONS the predictions, with TEST.REPORT ``report.html``, and at last
    ``results.json`` (:mod:`ovseg.evaluation.record`). Partial counts are kept in ``.partial`` in that folder until the
    evaluation is complete. Keys that matter: TEST.VOCABULARY, TEST.SYNONYMS, TEST.BACKGROUND_THRESHOLD,
    TEST.MIOU_CONVENTION, TEST.GROUNDING_MIOU, TEST.PROPOSAL_RECALL, TEST.SAVE_PREDICTIONS, TEST.REPORT,
    TEST.VIS_MODES, TEST.AUG, TEST.SLIDING_*, TEST.MULTI_SCALE.*, TEST.DENSE_CRF, TEST.ORACLE*, METRIC and
    TEST.SG_IOU_*. During the evaluation the model has the data set's own settings (TEST.PER_DATASET).

    Args:
        resume: skip the images that an earlier run has counted, or all of them if there is a result. Only counts with
            the same weights, settings, data and software are used; others are dropped.
        iteration: training iteration of the model; None if ``cfg`` names its weight files.
        digest: digest of the model if it is known, see :func:`ovseg.evaluation.identity.model_digest`.
        limit: number of images to evaluate, evenly spread over the data set; None for all.

    Returns:
        ``{"sem_seg": {score: percent}, "grounding": {...}, "proposals": {...}, "sg_iou": {...}}``, all but the first on
        request, on the main process; empty elsewhere. The confusion matrix is summed before any score is computed, so
        that results depend neither on the number of processes nor on interruptions.

    Raises:
        OvsegError: the data set is not prepared, an image or label file cannot be read, or an option cannot work.
    """
    check_prepared(dataset_name)
    model = _bare(model)
    with dataset_settings(model, settings_of(cfg, dataset_name)):
        return _evaluate(cfg, model, dataset_name, resume, iteration, digest, limit)


def _bare(model: nn.Module) -> nn.Module:
    """Return the model without DistributedDataParallel, whose collectives would block: shares differ in size."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _evaluate(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    resume: bool,
    iteration: int | None,
    digest: str | None,
    limit: int | None = None,
) -> OrderedDict[str, dict[str, float]]:
    """Run :func:`evaluate_dataset` with a model that has the data set's settings."""
    settings, cfg = settings_of(cfg, dataset_name), config_of(cfg, dataset_name)
    folder = Path(cfg.OUTPUT_DIR) / "inference" / folder_name(dataset_name, cfg.DATASETS.TEST)
    protocol = configured_protocol(cfg, dataset_name)
    viewed = augmented_model(cfg, oracle_model(cfg, model, dataset_name))
    grounding = None
    if cfg.TEST.GROUNDING_MIOU:
        independent = viewed is model and getattr(model, "scores_are_independent", False)
        grounding = PresentWords(viewed, GroundTruth(dataset_name), protocol, independent)
    outputs = ["sem_seg" if cfg.TEST.DENSE_CRF else "label_map", *(grounding.needs if grounding else ())]
    if draws_groups(cfg):
        outputs.append("group_maps")
    if cfg.TEST.PROPOSAL_RECALL and isinstance(model, PerPixel):
        raise OvsegError(_NO_MASKS)
    recall = ProposalRecallEvaluator(dataset_name) if cfg.TEST.PROPOSAL_RECALL else None
    if recall is not None:
        outputs.append("proposals")
    dataset = test_dataset(cfg, dataset_name, outputs, limit)
    file_names = [str(dataset.records[index]["file_name"]) for index in range(len(dataset))]
    table = build_table(cfg, model, protocol) if cfg.METRIC == "SG-IoU" else None
    identity = fingerprint(cfg, digest or model_digest(model), file_names, protocol)
    identity["sg_iou"] = None if table is None else table.digest
    if recall is not None:
        identity["proposal_recall"] = recall.describe()
    if resume and (record := comm.all_gather(finished_record(folder, identity))[0]) is not None:
        logger.info("--resume: %s was evaluated before, with the same weights and settings", dataset_name)
        if comm.is_main_process():
            remove_parts(folder)
        return _printed(record, folder)
    partial = PartialEvaluation(folder, identity, resume)
    keepers = _keepers(cfg, dataset_name, folder, partial, file_names)
    semantic = SemSegEvaluator(
        dataset_name,
        convention=cfg.TEST.MIOU_CONVENTION,
        post_process=DenseCRF().refine if cfg.TEST.DENSE_CRF else None,
        protocol=protocol,
        keepers=list(keepers.values()),
    )
    watch = Stopwatch()
    evaluators: dict[str, Any] = {"sem_seg": semantic}
    if grounding:
        evaluators["grounding"] = GroundingEvaluator(dataset_name, cfg.TEST.MIOU_CONVENTION, protocol=protocol)
    if recall is not None:
        evaluators["proposals"] = recall
    evaluator = DatasetEvaluators(list(evaluators.values()))
    try:
        partial.track(watch=watch, **evaluators, **keepers)
        with inference_context(model), torch.no_grad(), partial.saving():
            loader = test_loader(cfg, dataset, partial.done)
            _feed(viewed, loader, evaluator, dataset_name, partial, watch, grounding)
        partial.restore()
        results = OrderedDict(evaluator.evaluate())
        add_other_processes(watch)
        for keeper in keepers.values():
            keeper.finish()
    finally:
        for keeper in keepers.values():
            keeper.close()
    if not comm.is_main_process():
        return OrderedDict()
    if semantic.num_images != len(dataset):
        raise RuntimeError(f"{semantic.num_images} images of {dataset_name} counted, but it has {len(dataset)}")
    if table is not None:
        truth = semantic.ground_truth
        results["sg_iou"] = sg_scores(
            semantic.confusion, truth.class_names, table.fathers, truth.evaluation_set, semantic.convention
        )
    parts = {"sg_table": table, "grounding": grounding, "recall": recall}
    record = results_record(cfg, semantic, results, watch.seconds, identity, iteration, settings, **parts)
    write_results(folder, record, semantic.confusion, html=cfg.TEST.REPORT)
    partial.remove()
    return _printed(record, folder)


def _printed(record: dict[str, Any], folder: Path) -> OrderedDict[str, dict[str, float]]:
    """Print a record on the main process and return its scores; return an empty dict elsewhere."""
    if not comm.is_main_process():
        return OrderedDict()
    print_results(record, folder)
    return OrderedDict(record["results"])


def _keepers(
    cfg: CfgNode, dataset_name: str, folder: Path, partial: PartialEvaluation, file_names: Sequence[str]
) -> dict[str, Keeper]:
    """Return by name the keepers that write predictions and collect the worst images."""
    truth, keepers = GroundTruth(dataset_name), {}
    saved = cfg.TEST.SAVE_PREDICTIONS
    if saved in (True, "rle"):
        keepers["rle"] = RlePredictions(folder / RLE_FILE, partial.part(".jsonl"), truth.dataset_ids)
    elif saved == "png":
        keepers["png"] = PngPredictions(folder / PNG_FOLDER, file_names, len(truth.class_names))
    if cfg.TEST.REPORT:
        keepers["worst"] = WorstImages(folder / WORST_FILE, len(truth.class_names))
    if cfg.TEST.VIS_MODES:
        keepers["drawings"] = mode_drawings(cfg, dataset_name, file_names)
    return keepers


def _feed(
    model: nn.Module,
    loader: SampleLoader,
    evaluator: DatasetEvaluators,
    dataset_name: str,
    partial: PartialEvaluation,
    watch: Stopwatch,
    grounding: PresentWords | None = None,
) -> None:
    """Run a model on the images that are left and pass inputs (with ``index``) and outputs to the evaluators.

    With ``grounding``, outputs also have ``grounded``, the label maps with the words of each image alone. Progress is
    shown on the terminal if there is one, else it is logged.
    """
    total = sum(map(len, loader.batch_sampler))
    done = 0
    console = Console(stderr=True)
    shares = comm.get_world_size()
    label = dataset_name if shares == 1 else f"{dataset_name} (1 of {shares} processes)"
    show = comm.is_main_process() and console.is_terminal
    with progress_bar("{task.fields[speed]:.2f} img/s", console=console, show=show) as progress:
        task = progress.add_task(label, total=total, speed=0.0)
        began = time.perf_counter()
        watch.start()
        for images, inputs in zip(loader.batch_sampler, loader, strict=True):
            watch.lap("reading")
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.lap("model")
            if grounding:
                for output, grounded in zip(outputs, grounding(inputs, outputs), strict=True):
                    output["grounded"] = grounded
                watch.lap("grounding")
            with partial.counting(images):
                numbered = [{**sample, "index": index} for index, sample in zip(images, inputs, strict=True)]
                evaluator.process(numbered, outputs)
                watch.lap("evaluation")
            done += len(inputs)
            speed = done / (time.perf_counter() - began)
            progress.update(task, completed=done, speed=speed)
            if not console.is_terminal and comm.is_main_process():
                left = datetime.timedelta(seconds=round((total - done) / speed))
                message = f"{label}: {done}/{total} images, {speed:.2f} img/s, {left} left"
                log_every_n_seconds(logging.INFO, message, n=30, name=__name__)
