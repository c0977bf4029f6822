"""Evaluating a model on data sets: in one or several processes, with a progress bar, results on disk."""

from __future__ import annotations

import datetime
import logging
import time
from collections import Counter, OrderedDict
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_context
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovseg.data.catalog import check_prepared
from ovseg.data.loader import SampleLoader, build_test_loader
from ovseg.data.protocol import protocol_of
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import per_class_rows
from ovseg.evaluation.crf import DenseCRF
from ovseg.evaluation.oracle_model import check_oracle, describe_oracle, oracle_model
from ovseg.evaluation.proposals import ProposalRecallEvaluator
from ovseg.evaluation.report import results_table, write_csv, write_json
from ovseg.evaluation.sem_seg import SemSegEvaluator
from ovseg.evaluation.tta import augmented_model
from ovseg.evaluation.versions import versions
from ovseg.images import read_image
from ovseg.progress import progress_bar

logger = logging.getLogger(__name__)


def evaluate_all(cfg: CfgNode, model: nn.Module) -> OrderedDict[str, OrderedDict]:
    """Evaluate on every data set of ``DATASETS.TEST``; see :func:`evaluate_dataset`.

    Returns:
        results by data set; the results are empty outside the main process.

    Raises:
        OvsegError: no data set is named, or one is not prepared (all are checked before the first starts).
    """
    if not cfg.DATASETS.TEST:
        raise OvsegError("DATASETS.TEST is empty: name the data sets to evaluate on")
    check_oracle(cfg)
    for dataset_name in cfg.DATASETS.TEST:
        check_prepared(dataset_name)
        protocol_of(dataset_name, cfg.TEST.VOCABULARY)
    return OrderedDict((name, evaluate_dataset(cfg, model, name)) for name in cfg.DATASETS.TEST)


def evaluate_dataset(cfg: CfgNode, model: nn.Module, dataset_name: str) -> OrderedDict[str, dict[str, float]]:
    """Evaluate on one data set; every process of a distributed run calls it and takes its share of the images.

    The main process writes ``<OUTPUT_DIR>/inference/<dataset>/results.json`` and ``per_class.csv`` (and
    ``sem_seg_predictions.json`` with TEST.SAVE_PREDICTIONS) and prints a table. Keys that matter: TEST.VOCABULARY,
    TEST.MIOU_CONVENTION, TEST.PROPOSAL_RECALL, TEST.SAVE_PREDICTIONS, TEST.AUG, TEST.SLIDING_*, TEST.DENSE_CRF,
    TEST.ORACLE*.

    Returns:
        ``{"sem_seg": {score: percent}, "proposals": {...}}`` on the main process, empty elsewhere. The confusion
        matrix is summed over processes before any score is computed: their number changes nothing.

    Raises:
        OvsegError: the data set is not prepared, an image or label file is unusable, or an option cannot work.
    """
    check_prepared(dataset_name)
    output_dir = Path(cfg.OUTPUT_DIR) / "inference" / dataset_name
    semantic = SemSegEvaluator(
        dataset_name,
        output_dir=output_dir,
        convention=cfg.TEST.MIOU_CONVENTION,
        save_predictions=cfg.TEST.SAVE_PREDICTIONS,
        post_process=_crf_refinement() if cfg.TEST.DENSE_CRF else None,
        variant=cfg.TEST.VOCABULARY,
    )
    outputs = ["sem_seg" if cfg.TEST.DENSE_CRF else "label_map"]
    evaluators: list = [semantic]
    if cfg.TEST.PROPOSAL_RECALL:
        evaluators.append(ProposalRecallEvaluator(dataset_name))
        outputs.append("proposals")
    loader = build_test_loader(cfg, dataset_name, outputs=tuple(outputs))
    if isinstance(model, DistributedDataParallel):
        model = model.module  # shares differ in size, so its collective calls would wait for ever
    evaluator = DatasetEvaluators(evaluators)
    try:
        with inference_context(model), torch.no_grad():
            viewed = augmented_model(cfg, oracle_model(cfg, model, dataset_name))
            seconds = _run(viewed, loader, evaluator, dataset_name)
        results = OrderedDict(evaluator.evaluate())
    finally:
        semantic.close()
    seconds = sum(comm.all_gather(seconds), Counter())
    if not comm.is_main_process():
        return OrderedDict()
    if semantic.num_images != len(loader.dataset):
        raise RuntimeError(f"{semantic.num_images} images of {dataset_name} counted, but it has {len(loader.dataset)}")
    _report(cfg, dataset_name, output_dir, semantic, results, seconds)
    return results


def _run(model: nn.Module, loader: SampleLoader, evaluator: DatasetEvaluators, dataset_name: str) -> Counter:
    """Feed this process's images through; gives the seconds spent on reading, the model and evaluation."""
    total = len(loader.batch_sampler.sampler)
    seconds: Counter = Counter()
    done = 0
    console = Console(stderr=True)
    shares = comm.get_world_size()
    label = dataset_name if shares == 1 else f"{dataset_name} (1 of {shares} processes)"
    show = comm.is_main_process() and console.is_terminal
    with progress_bar("{task.fields[speed]:.2f} img/s", console=console, show=show) as progress:
        task = progress.add_task(label, total=total, speed=0.0)
        evaluator.reset()
        began = now = time.perf_counter()
        for inputs in loader:
            now = _lap(seconds, "reading", now)
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = _lap(seconds, "model", now)
            evaluator.process(inputs, outputs)
            now = _lap(seconds, "evaluation", now)
            done += len(inputs)
            speed = done / (now - began)
            progress.update(task, completed=done, speed=speed)
            if not console.is_terminal and comm.is_main_process():
                left = datetime.timedelta(seconds=round((total - done) / speed))
                message = f"{label}: {done}/{total} images, {speed:.2f} img/s, {left} left"
                log_every_n_seconds(logging.INFO, message, n=30, name=__name__)
    return seconds


def _lap(seconds: Counter, what: str, since: float) -> float:
    now = time.perf_counter()
    seconds[what] += now - since
    return now


def _crf_refinement():
    crf = DenseCRF()

    def refine(sample: dict, scores: Tensor) -> Tensor:
        return crf(read_image(sample["file_name"]), scores)

    return refine


def _report(
    cfg: CfgNode,
    dataset_name: str,
    output_dir: Path,
    semantic: SemSegEvaluator,
    results: OrderedDict[str, dict[str, float]],
    seconds: Counter,
) -> None:
    """Write results.json and per_class.csv, print the table."""
    truth, num_images = semantic.ground_truth, semantic.num_images
    per_image = {name: value / num_images for name, value in seconds.items()}
    content = {
        "dataset": dataset_name,
        "num_images": num_images,
        "num_classes": len(truth.class_names),
        "miou_convention": semantic.convention,
        "oracle": describe_oracle(cfg),
        "results": results,
        "weights": cfg.MODEL.WEIGHTS,
        "seed": cfg.SEED,
        "seconds_per_image": {**per_image, "total": sum(per_image.values())},
        "num_processes": comm.get_world_size(),
        "device": cfg.MODEL.DEVICE,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "evaluation_set": MetadataCatalog.get(dataset_name).get("evaluation_set"),
        "config": yaml.safe_load(cfg.dump()),
    }
    write_json(output_dir / "results.json", content)
    write_csv(output_dir / "per_class.csv", per_class_rows(semantic.confusion, truth.class_names, truth.evaluation_set))
    total = content["seconds_per_image"]["total"]
    console = Console(highlight=False)
    console.print(f"{dataset_name}: {num_images} images, {total:.3f} s per image", soft_wrap=True, markup=False)
    if content["oracle"]:
        told = ", ".join(f"{key}: {value}" for key, value in content["oracle"].items())
        console.print(f"WITH AN ORACLE, not a result of the model alone ({told})", soft_wrap=True, markup=False)
    console.print(results_table(results, list(truth.evaluation_set), semantic.convention))
    console.print(f"details: {output_dir / 'results.json'}, per_class.csv", soft_wrap=True, markup=False)
