"""The evaluation loop: images through a model into evaluators, with a progress bar."""

from __future__ import annotations

import datetime
import logging
import time

import torch
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from rich.console import Console
from torch import nn

from ovseg.data.loader import SampleLoader
from ovseg.evaluation.partial import PartialEvaluation
from ovseg.evaluation.tally import Stopwatch
from ovseg.io.progress import progress_bar


def feed(
    model: nn.Module,
    loader: SampleLoader,
    evaluator: DatasetEvaluators,
    dataset_name: str,
    partial: PartialEvaluation,
    watch: Stopwatch,
) -> None:
    """Run a model on this process's images and pass its outputs to the evaluators.

    Progress is shown on the terminal if there is one, else it is logged.

    Args:
        model: model in evaluation mode.
        loader: loader of the images that are left, see :func:`ovseg.data.loader.test_loader`.
        evaluator: receives the model's inputs, each with ``index``, its position in the data set, and the outputs.
        dataset_name: name to show.
        partial: records which images were counted.
        watch: measures the time of reading, the model and the evaluation.

    Raises:
        OvsegError: an image or label file is unusable.
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
