"""Fine-tuning CLIP on mask-text pairs: the run that ``tools/finetune_clip.py`` starts.

Specification of OVSeg, 12.2 and 12.3; of SCAN, section 12.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torch.utils.tensorboard import SummaryWriter

from ovseg.adaptation.context import CropsInContext, look_at_all
from ovseg.adaptation.contrastive import average_gradients
from ovseg.adaptation.crops import BatchLoader, EpochBatches, TrainingCrops
from ovseg.adaptation.image_root import find_image_root
from ovseg.adaptation.meter import Meter, log_to_terminal
from ovseg.adaptation.pair_list import read_pair_list
from ovseg.adaptation.pair_shards import PairDataset
from ovseg.adaptation.recipe import FIELDS, SHIFT, Recipe
from ovseg.adaptation.run_folder import BEST, LAST, RECIPE, RunFolder, damaged_run
from ovseg.adaptation.step import contrastive_backward
from ovseg.adaptation.tuned_clip import build_optimizer, flags_in_messages, learning_rate, load_for_tuning
from ovseg.adaptation.validation import validation_set, zero_shot
from ovseg.checkpoint import save_safetensors
from ovseg.clip.adapter import DTYPES, image_size
from ovseg.clip.model import CONFIG, find_clip
from ovseg.clip.preprocessing import Preprocessing
from ovseg.clip.text import TextEmbedder
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path
from ovseg.io.progress import progress_bar
from ovseg.vocabulary.templates import get_templates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to fine-tune.

    Attributes:
        architecture, clip: as :func:`ovseg.clip.model.find_clip`.
        pairs: folders and ``.tar`` shards of mined pairs, and lists (``.tsv``) in the original's format.
        tune: one of :data:`ovseg.adaptation.recipe.MODES`.
        output: folder of the run.
        recipe: everything else.
        val: "toy", a folder of filled crops per class, or None.
        resume: go on with the run in ``output``.
        depth_asked: the prompts' depth in the recipe was given by the user.
        device: "cpu" or "cuda".
        image_root, val_image_root: folders of the whole images of the pairs and of ``val``, for contextual-shift;
            "toy:train" for the toy world's. ``val`` "toy" needs none.
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
    """Train, check and save until the last epoch, in this process or, within a group, in all of them.

    Writes ``epoch_N.pt`` and ``last.pt`` (open_clip's layout: ``epoch``, ``name``, ``state_dict``; ``last.pt`` also
    what resuming needs), ``best.safetensors``, ``open_clip_config.json`` (the architecture and how images are
    prepared), ``metrics.jsonl``, ``recipe.yaml`` and ``tensorboard/``.

    Raises:
        OvsegError: see the parts; whenever it comes, ``--resume`` goes on from the last checkpoint.
    """
    console = log_to_terminal()
    job.recipe.check(comm.get_world_size())
    folder = RunFolder(job.output)
    with folder.owned(job.resume) if comm.is_main_process() else contextlib.nullcontext():
        comm.synchronize()  # the main process has looked at the folder
        last = folder.read_last() if job.resume else None
        if job.resume and last is None:
            logger.warning("--resume: no checkpoint in %s yet, starting from %s", job.output, job.clip)
        _Run(job, folder, last).train(console)


class _Run:
    """The state of a run; attributes are set once, but for step, best and best_epoch."""

    def __init__(self, job: Job, folder: RunFolder, last: dict[str, Any] | None):
        weights = job.clip if last is None else str(folder.folder / LAST)
        with flags_in_messages():
            preprocessing = find_clip(job.architecture, weights).preprocessing
        recipe = self.recipe = job.recipe.with_fill(preprocessing)
        self.job, self.folder = job, folder
        self.device = torch.device("cuda", torch.cuda.current_device()) if job.device == "cuda" else torch.device("cpu")
        pairs, texts = read_pairs(job.pairs)
        self.steps_per_epoch = len(texts) // recipe.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs
        _check_length(len(texts), self.steps, recipe)
        images = _find_images(pairs, job)
        self.settings = _settings(replace(job, recipe=recipe), texts, images)
        if last is not None:
            _check_settings(last["settings"], self.settings, folder)
        self.tuned = load_for_tuning(job.architecture, weights, job.tune, recipe, depth_asked=job.depth_asked)
        self.tuned.model.to(self.device)
        size = image_size(self.tuned.model)

        names = sorted(set(texts))
        number = {text: k for k, text in enumerate(names)}
        self.text_features = self._embed(names, (recipe.template,))  # float32 (K, D)
        ids = torch.tensor([number[text] for text in texts])
        self.crops: Dataset = TrainingCrops(pairs, ids, size, recipe, preprocessing)
        self.validation = _validation_set(job.val, size, preprocessing) if job.val else None
        if self.tuned.shift is not None:
            self._look_at_contexts(images, size)
        if self.validation is not None:
            self.class_features = self._embed(self.validation.class_names, get_templates("vild"))

        self.optimizer = build_optimizer(self.tuned, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.step, self.best, self.best_epoch = 0, -1.0, 0
        if last is not None:
            self.step, self.best, self.best_epoch = last["step"], last["best"], last["best_epoch"]
            try:
                self.optimizer.load_state_dict(last["optimizer"])
                self.scaler.load_state_dict(last["scaler"])
            except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
                raise damaged_run(folder.folder / LAST, error) from error
            logger.info("going on after step %d of %d", self.step, self.steps)
        group = f"{comm.get_world_size()} x {self.device.type}"
        logger.info(
            "%d pairs, %d texts, %d steps of %d on %s", len(texts), len(names), self.steps, recipe.batch_size, group
        )

    def train(self, console: Any) -> None:
        """From the step that was reached to the last one."""
        writer, recipe = None, self.recipe
        with contextlib.ExitStack() as stack:
            if comm.is_main_process():
                self._write_recipe()
                self.folder.start_metrics(self.step)
                writer = SummaryWriter(str(self.folder.folder / "tensorboard"), purge_step=self.step or None)
                stack.callback(writer.close)
            meter = self.meter = Meter(self.folder, writer, self.device)
            if not self.step and self.validation is not None:
                self._validate(0)
            progress = stack.enter_context(
                progress_bar("{task.fields[state]}", console=console, show=comm.is_main_process())
            )
            task = progress.add_task("fine-tuning", total=self.steps, completed=self.step, state="")
            for batch in meter.timed(self._batches()):
                meter.add(self._train_step(batch), recipe.batch_size)
                epoch, in_epoch = divmod(self.step, self.steps_per_epoch)
                progress.update(task, completed=self.step, state=meter.state)
                if self.step % recipe.log_every == 0 or not in_epoch:
                    rate, scale = self.optimizer.param_groups[0]["lr"], self.tuned.model.logit_scale.exp().item()
                    meter.log(self.step, epoch=self.step / self.steps_per_epoch, lr=rate, scale=scale)
                if not in_epoch:
                    self._end_epoch(epoch)
                    meter.restart()
                elif recipe.checkpoint_every and self.step % recipe.checkpoint_every == 0:
                    meter.check()
                    self._save_last(epoch)
            meter.summarise()
        logger.info("done: %s is epoch %d; %s the last", self.folder.folder / BEST, self.best_epoch, LAST)

    def _look_at_contexts(self, images: Sequence[Path], size: int) -> None:
        """Give the crops, and those of the validation, what the original CLIP sees in their whole images."""
        look = partial(
            look_at_all,
            self.tuned.shift,
            size=size,
            device=self.device,
            autocast=self._autocast,
            workers=self.recipe.workers,
            preprocessing=self.tuned.source.preprocessing,
        )
        self.crops = CropsInContext(self.crops, self.tuned.shift, images, look)
        if self.validation is not None:
            pictures = self.validation.pictures
            images = pictures.find_images(self.job.val_image_root)
            pictures = CropsInContext(pictures, self.tuned.shift, images, look)
            self.validation = replace(self.validation, pictures=pictures)

    def _batches(self) -> Iterator[list[Tensor]]:
        rank, processes = comm.get_rank(), comm.get_world_size()
        batches = EpochBatches(len(self.crops), self.recipe, self.step, rank, processes)
        pinned = self.device.type == "cuda"
        return iter(BatchLoader(self.crops, batches, workers=self.recipe.workers, pin_memory=pinned))

    def _train_step(self, batch: Sequence[Tensor]) -> Tensor:
        *inputs, ids = (part.to(self.device, non_blocking=True) for part in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.recipe)
        self.optimizer.zero_grad()
        loss = contrastive_backward(
            self._encode,
            inputs,
            self.text_features[ids],
            ids,
            self.tuned.model.logit_scale,
            micro_batch=self.recipe.micro_batch,
            ignore_equal_texts=self.recipe.equal_nouns == "ignore",
            scale_loss=self.scaler.scale,
        )
        average_gradients(self.tuned.trained.values())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.tuned.clamp_logit_scale()
        self.step += 1
        return loss

    def _encode(self, *inputs: Tensor) -> Tensor:
        with self._autocast():
            return self.tuned.encode(*inputs).float()

    def _autocast(self) -> torch.autocast:
        precision = self.recipe.precision
        return torch.autocast(self.device.type, dtype=DTYPES[precision], enabled=precision != "fp32")

    def _embed(self, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
        """float32 (n, D) unit vectors; the text tower is frozen, so each text is encoded once, in float32."""
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
        self.meter.write(self.step, {"epoch": epoch, **{f"val/{name}": value for name, value in result.items()}})
        return result

    def _end_epoch(self, epoch: int) -> None:
        result = self._validate(epoch) if self.validation is not None else None
        better = result is None or result["top1"] > self.best
        if better:
            self.best, self.best_epoch = (result["top1"] if result else -1.0), epoch
        if not comm.is_main_process():
            return
        self.folder.save(f"epoch_{epoch}.pt", self._open_clip_content(epoch))
        if better:
            metadata = {
                "architecture": self.job.architecture,
                "tuned": self.job.tune,
                "epoch": str(epoch),
                "mask_prompt_forward": str(self.tuned.use_masks),
            }
            save_safetensors(self.tuned.model.state_dict(), self.folder.folder / BEST, metadata)
        self._save_last(epoch)  # after all others: what is missing when we are killed is done again

    def _save_last(self, epoch: int) -> None:
        if not comm.is_main_process():
            return
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "settings": json.dumps(self.settings),
        }
        self.folder.save(LAST, self._open_clip_content(epoch) | state)

    def _open_clip_content(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "name": self.job.architecture, "state_dict": self.tuned.state_dict()}

    def _write_recipe(self) -> None:
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.recipe).items()}
        with atomic_path(self.folder.folder / RECIPE) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        source = self.tuned.source  # beside the weights, so that who uses them prepares images as we do
        content = {"model_cfg": source.architecture, "preprocess_cfg": asdict(source.preprocessing)}
        with atomic_path(self.folder.folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_pairs(paths: Sequence[str]) -> tuple[ConcatDataset, list[str]]:
    """The pairs of all sources as one data set, and their texts.

    Raises:
        OvsegError: see :class:`PairDataset` and :func:`read_pair_list`; or there is no pair in them.
    """
    sources = [read_pair_list(path) if path.endswith((".tsv", ".csv", ".txt")) else PairDataset(path) for path in paths]
    texts = [text for source in sources for text in source.texts()]
    if not texts:
        raise OvsegError(f"there are no pairs in {', '.join(paths)}: check --pairs")
    return ConcatDataset([source for source in sources if len(source)]), texts


def _find_images(pairs: ConcatDataset, job: Job) -> list[Path]:
    """The whole image of each pair, where the mode needs them."""
    if job.tune != SHIFT:
        return []
    root = find_image_root(job.image_root, "--image-root")
    return [path for source in pairs.datasets for path in source.find_images(root)]


def _validation_set(name: str, size: int, preprocessing: Preprocessing) -> Any:
    """Drawn by the main process first: the toy world is made at first use."""
    if not comm.is_main_process():
        comm.synchronize()
    found = validation_set(name, size, preprocessing)
    if comm.is_main_process():
        comm.synchronize()
    return found


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
    """What has to be the same for a run to be resumed."""
    recipe = {name: value for name, value in asdict(job.recipe).items() if FIELDS[name].metadata["same_run"]}
    content = [list(texts), [path.name for path in images]] if images else list(texts)
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    settings = {"tune": job.tune, "architecture": job.architecture, "val": job.val, "pairs": digest, **recipe}
    return json.loads(json.dumps(settings))


def _check_settings(text: str, ours: dict[str, Any], folder: RunFolder) -> None:
    try:
        theirs = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged_run(folder.folder / LAST, error) from error
    for name, value in ours.items():
        if theirs.get(name, value) != value:  # options that are newer than the run had no effect on it
            what = "other pairs" if name == "pairs" else f"{name} {theirs[name]}, not {value}"
            raise OvsegError(
                f"the run in {folder.folder} has {what}: --resume needs the same, or choose another --output"
            )
