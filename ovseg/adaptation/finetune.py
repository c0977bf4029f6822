"""Fine-tuning CLIP on mask-text pairs: the run that ``tools/finetune_clip.py`` starts.

Specification of OVSeg, 12.2 and 12.3; of SCAN, section 12.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.engine import hooks
from detectron2.utils import comm
from rich.console import Console
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from ovseg.adaptation.context import CropsInContext, look_at_all
from ovseg.adaptation.contrastive import contrastive_loss, encode_in_parts
from ovseg.adaptation.crops import TrainingCrops, batch_loader
from ovseg.adaptation.image_root import find_image_root
from ovseg.adaptation.pair_list import read_pair_list
from ovseg.adaptation.pair_shards import PairDataset
from ovseg.adaptation.recipe import FIELDS, SHIFT, Recipe
from ovseg.adaptation.tuned_clip import build_optimizer, clip_flags, load_for_tuning
from ovseg.adaptation.validation import validation_set, zero_shot
from ovseg.checkpoint import save_safetensors
from ovseg.clip.adapter import image_size
from ovseg.clip.model import CONFIG, find_clip
from ovseg.clip.text import TextEmbedder
from ovseg.data.sampler import StreamBatchSampler
from ovseg.engine.checkpoints import CheckpointFolder
from ovseg.engine.hooks import Meter, ProgressBar
from ovseg.engine.metrics import MetricsWriter, cut_lines
from ovseg.engine.schedules import WarmupCosineLR
from ovseg.engine.setup import log_to_terminal
from ovseg.engine.trainer import Trainer, autocast
from ovseg.errors import OvsegError
from ovseg.io.devices import DTYPES
from ovseg.io.files import atomic_path
from ovseg.vocabulary.templates import get_templates

logger = logging.getLogger(__name__)

LAST, BEST, METRICS, RECIPE = "last.pt", "best.safetensors", "metrics.jsonl", "recipe.yaml"
LAST_ENTRIES = {  # what last.pt holds to resume from
    "settings": str,
    "step": int,
    "best": (int, float),
    "best_epoch": int,
    "optimizer": dict,
    "scaler": dict,
}
REMEDY = "lower --lr or raise --warmup, and start from the last checkpoint, with a new --output and it as --clip"


@dataclass(frozen=True)
class Job:
    """What to fine-tune.

    Attributes:
        architecture, clip: as :func:`ovseg.clip.model.find_clip`.
        pairs: folders and ``.tar`` shards of mined pairs, and lists (``.tsv``) in the original's format.
        tune: one of :data:`ovseg.adaptation.recipe.MODES`.
        output: folder of the run.
        recipe: everything else.
        val: the name of a world ("toy"), a folder of filled crops per class, or None.
        resume: resume the run in ``output``.
        depth_asked: the prompts' depth in the recipe was given by the user.
        device: "cpu" or "cuda".
        image_root, val_image_root: folders of the whole images of the pairs and of ``val``, for contextual-shift;
            "toy:train" for those of the toy world. ``val`` "toy" needs none.
    """

    architecture: str
    clip: str
    pairs: tuple[str, ...]
    tune: str
    output: Path
    recipe: Recipe
    val: str | None = None
    resume: bool = False
    depth_asked: bool = False
    device: str = "cpu"
    image_root: str | None = None
    val_image_root: str | None = None


def finetune(job: Job) -> None:
    """Train, validate and save until the last epoch, in this process or, within a group, in all of them.

    Writes ``epoch_N.pt`` and ``last.pt`` (open_clip's layout: ``epoch``, ``name``, ``state_dict``; ``last.pt`` also
    :data:`LAST_ENTRIES`), ``best.safetensors``, ``open_clip_config.json`` (the architecture and how images are
    prepared), ``metrics.jsonl``, ``recipe.yaml`` and ``tensorboard/``.

    Raises:
        OvsegError: see the parts; whenever it comes, ``--resume`` resumes from the last checkpoint.
    """
    console = log_to_terminal()
    job.recipe.check(comm.get_world_size())
    folder = checkpoint_folder(job.output)
    with folder.owned():
        if comm.is_main_process() and not job.resume and (job.output / METRICS).exists():
            raise OvsegError(f"{job.output} holds a run already: resume it with --resume, or choose another --output")
        comm.synchronize()  # the main process has looked at the folder
        found = folder.load_newest() if job.resume else None
        if job.resume and found is None:
            logger.warning("--resume: no checkpoint in %s yet, starting from %s", job.output, job.clip)
        _Run(job, folder, found[1] if found else None).train(console)


def checkpoint_folder(output: Path) -> CheckpointFolder:
    """Return the checkpoints of a fine-tuning run."""
    return CheckpointFolder(output, LAST_ENTRIES, LAST, "--output")


class _Run:
    """A run; attributes are set once, but for best and best_epoch."""

    def __init__(self, job: Job, folder: CheckpointFolder, last: Mapping[str, Any] | None):
        self.job, self.folder, self.last = job, folder, last
        weights = job.clip if last is None else str(folder.folder / LAST)
        with clip_flags():
            preprocessing = find_clip(job.architecture, weights).preprocessing
        recipe = self.recipe = job.recipe.with_fill(preprocessing)
        self.device = torch.device("cuda", torch.cuda.current_device()) if job.device == "cuda" else torch.device("cpu")
        self.dtype = None if recipe.precision == "fp32" else DTYPES[recipe.precision]  # of mixed precision
        pairs, texts = read_pairs(job.pairs)
        self.steps_per_epoch = len(texts) // recipe.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs
        _check_length(len(texts), self.steps, recipe)
        images = _find_images(pairs, job)
        self.settings = _settings(replace(job, recipe=recipe), texts, images)
        self.step, self.best, self.best_epoch = 0, -1.0, 0
        if last is not None:
            with folder.reading(folder.folder / LAST):
                _check_settings(dict(json.loads(last["settings"])), self.settings, job.output)
            self.step, self.best, self.best_epoch = last["step"], last["best"], last["best_epoch"]
        self.tuned = load_for_tuning(job.architecture, weights, job.tune, recipe, depth_asked=job.depth_asked)
        self.tuned.model.to(self.device)
        size = image_size(self.tuned.model)

        names = sorted(set(texts))
        number = {text: k for k, text in enumerate(names)}
        self.text_features = self._embed(names, (recipe.template,))  # float32 (K, D)
        ids = torch.tensor([number[text] for text in texts])
        self.crops: Dataset = TrainingCrops(pairs, ids, size, recipe, preprocessing)
        self.validation = validation_set(job.val, size, preprocessing) if job.val else None
        if self.tuned.shift is not None:
            self._look_at_contexts(images, size)
        if self.validation is not None:
            self.class_features = self._embed(self.validation.class_names, get_templates("vild"))
        group = f"{comm.get_world_size()} x {self.device.type}"
        logger.info(
            "%d pairs, %d texts, %d steps of %d on %s", len(texts), len(names), self.steps, recipe.batch_size, group
        )

    def train(self, console: Console) -> None:
        """Train from the step that was reached to the last one."""
        recipe, main, rank, processes = self.recipe, comm.is_main_process(), comm.get_rank(), comm.get_world_size()
        start = self.step * recipe.batch_size
        batches = StreamBatchSampler(
            len(self.crops), recipe.batch_size, recipe.seed, start, rank, processes, epochs=recipe.epochs
        )
        loader = batch_loader(self.crops, batches, recipe.workers, pin_memory=self.device.type == "cuda")
        optimizer = build_optimizer(self.tuned, recipe)
        scheduler = WarmupCosineLR(optimizer, recipe.warmup, self.steps)
        options = {"seed": recipe.seed, "scale_losses": recipe.precision == "fp16", "remedy": REMEDY}
        self.trainer = Trainer(self._losses, loader, optimizer, scheduler, **options)
        if self.last is not None:
            state = {name: self.last[key] for name, key in (("optimizer", "optimizer"), ("grad_scaler", "scaler"))}
            with self.folder.reading(self.folder.folder / LAST):
                self.trainer.load_state_dict({**state, "iteration": self.step - 1})
            logger.info("resuming after step %d of %d", self.step, self.steps)
        with contextlib.ExitStack() as stack:
            self.writer = None
            if main:
                self._write_recipe()
                metrics, tensorboard = self.job.output / METRICS, self.job.output / "tensorboard"
                cut_lines(metrics, "step", self.step or -1)
                options = {"step_key": "step", "prefix": "train/", "purge_step": self.step or None}
                self.writer = stack.enter_context(contextlib.closing(MetricsWriter(metrics, tensorboard, **options)))
            if not self.step and self.validation is not None:
                self._validate(0)
            periods = (recipe.log_every, self.steps_per_epoch)
            meter = Meter(periods, recipe.batch_size, "pairs", self._write, self._describe)
            self.trainer.register_hooks(
                [
                    hooks.LRScheduler(optimizer, scheduler),
                    meter,
                    ProgressBar("fine-tuning", lambda: meter.state, console, show=main),
                    hooks.CallbackHook(after_step=self._after_step),
                ]
            )
            self.trainer.train(self.step, self.steps)
        logger.info("done: %s is epoch %d; %s the last", self.job.output / BEST, self.best_epoch, LAST)

    def _look_at_contexts(self, images: Sequence[Path], size: int) -> None:
        """Give the crops, and those of the validation, what the original CLIP sees in their whole images."""
        look = partial(
            look_at_all,
            self.tuned.shift,
            size=size,
            device=self.device,
            autocast=partial(autocast, self.device, self.dtype),
            workers=self.recipe.workers,
            preprocessing=self.tuned.source.preprocessing,
        )
        self.crops = CropsInContext(self.crops, self.tuned.shift, images, look)
        if self.validation is not None:
            crops = self.validation.crops
            images = crops.regions.find_images(self.job.val_image_root)
            self.validation = replace(self.validation, crops=CropsInContext(crops, self.tuned.shift, images, look))

    def _losses(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the loss of a batch: the inputs of :meth:`TunedClip.encode`, and the numbers of texts."""
        *inputs, ids = (part.to(self.device, non_blocking=True) for part in batch)
        features = encode_in_parts(self._encode, inputs, self.recipe.micro_batch)
        ignore = self.recipe.equal_nouns == "ignore"
        scale = self.tuned.model.logit_scale
        return {"loss": contrastive_loss(features, self.text_features[ids], scale, ids, ignore_equal_texts=ignore)}

    def _encode(self, *inputs: Tensor) -> Tensor:
        # the context ends with each part of a batch, and with it autocast's cache of weights
        with autocast(self.device, self.dtype):
            return self.tuned.encode(*inputs).float()

    def _embed(self, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return float32 (n, D) unit vectors; the text tower is frozen: each text is encoded once, in float32."""
        embedder = TextEmbedder(
            self.tuned.model,
            self.tuned.tokenizer,
            templates,
            autocast=lambda _: contextlib.nullcontext(),
            truncate=True,
        )
        return embedder(texts)

    def _validate(self, epoch: int) -> dict[str, float]:
        workers = self.recipe.workers
        result = zero_shot(self._encode, self.class_features, self.validation, workers=workers)
        logger.info("epoch %d, zero-shot %s", epoch, ", ".join(f"{name} {value:.1f}" for name, value in result.items()))
        step = epoch * self.steps_per_epoch
        self._write(step, {"epoch": epoch, **{f"val/{name}": value for name, value in result.items()}})
        return result

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.add(step, values)

    def _describe(self, step: int) -> dict[str, float]:
        rate, scale = self.trainer.storage.latest()["lr"][0], self.tuned.model.logit_scale.exp().item()
        return {"epoch": step / self.steps_per_epoch, "lr": rate, "scale": scale}

    def _after_step(self, trainer: Trainer) -> None:
        """Validate and save at the end of an epoch; save, too, every ``checkpoint_every`` steps."""
        step, every = trainer.iter + 1, self.recipe.checkpoint_every
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        if not in_epoch:
            self._end_epoch(epoch)
        if not in_epoch or (every and step % every == 0):
            self._save(LAST, epoch, self._last_state(step))  # after all others: what a killed run lacks is done again

    def _end_epoch(self, epoch: int) -> None:
        result = self._validate(epoch) if self.validation is not None else None
        better = result is None or result["top1"] > self.best
        if better:
            self.best, self.best_epoch = (result["top1"] if result else -1.0), epoch
        self._save(f"epoch_{epoch}.pt", epoch, {})
        if better and comm.is_main_process():
            metadata = {
                "architecture": self.job.architecture,
                "tuned": self.job.tune,
                "epoch": str(epoch),
                "mask_prompt_forward": str(self.tuned.use_masks),
            }
            save_safetensors(self.tuned.model.state_dict(), self.job.output / BEST, metadata)

    def _save(self, name: str, epoch: int, more: Mapping[str, Any]) -> None:
        """Save in open_clip's layout."""
        if comm.is_main_process():
            content = {"epoch": epoch, "name": self.job.architecture, "state_dict": self.tuned.state_dict()}
            self.folder.save(name, {**content, **more})

    def _last_state(self, step: int) -> dict[str, Any]:
        state = self.trainer.state_dict()
        return {
            "optimizer": state["optimizer"],
            "scaler": state["grad_scaler"],
            "step": step,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "settings": json.dumps(self.settings),
        }

    def _write_recipe(self) -> None:
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.recipe).items()}
        with atomic_path(self.job.output / RECIPE) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        source = self.tuned.source  # next to the weights, so that their users prepare images in the same way
        content = {"model_cfg": source.architecture, "preprocess_cfg": asdict(source.preprocessing)}
        with atomic_path(self.job.output / CONFIG) as temporary:
            temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_pairs(paths: Sequence[str]) -> tuple[ConcatDataset, list[str]]:
    """Return the pairs of all sources as one data set, and their texts.

    Raises:
        OvsegError: see :class:`PairDataset` and :func:`read_pair_list`; or there is no pair in them.
    """
    sources = [read_pair_list(path) if path.endswith((".tsv", ".csv", ".txt")) else PairDataset(path) for path in paths]
    texts = [text for source in sources for text in source.texts()]
    if not texts:
        raise OvsegError(f"there are no pairs in {', '.join(paths)}: check --pairs")
    return ConcatDataset([source for source in sources if len(source)]), texts


def _find_images(pairs: ConcatDataset, job: Job) -> list[Path]:
    """Return the whole image of each pair, where the mode needs them."""
    if job.tune != SHIFT:
        return []
    root = find_image_root(job.image_root, "--image-root")
    return [path for source in pairs.datasets for path in source.find_images(root)]


def _check_length(pairs: int, steps: int, recipe: Recipe) -> None:
    if not steps:
        raise OvsegError(
            f"{pairs} pairs do not fill one batch of {recipe.batch_size}: set --batch-size to at most that"
        )
    if recipe.warmup >= steps:
        raise OvsegError(
            f"warmup is {recipe.warmup} steps, but the whole run has {steps}: set --warmup lower, or train longer"
        )


def _settings(job: Job, texts: Sequence[str], images: Sequence[Path]) -> dict[str, Any]:
    """Return what has to be the same for a run to be resumed."""
    recipe = {name: value for name, value in asdict(job.recipe).items() if FIELDS[name].metadata["same_run"]}
    content = [list(texts), [path.name for path in images]] if images else list(texts)
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    settings = {"tune": job.tune, "architecture": job.architecture, "val": job.val, "pairs": digest, **recipe}
    return json.loads(json.dumps(settings))


def _check_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any], output: Path) -> None:
    for name, value in ours.items():
        if theirs.get(name, value) != value:  # options that are newer than the run had no effect on it
            what = "other pairs" if name == "pairs" else f"{name} {theirs[name]}, not {value}"
            raise OvsegError(f"the run in {output} has {what}: --resume needs the same, or choose another --output")
