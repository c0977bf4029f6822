"""Training of the toy world's CLIP: the loss, and a run that can be resumed.

The loss is CLIP's symmetric cross entropy over the pairs of a batch (Radford et al. 2021, section 2.3), and the same
for the words of the captions: each image against all words, of which its caption's are right, and each word against all
words in other prompts. Colours and grounds alone distinguish most captions, so that pairs of images and captions alone
would leave the names of shapes all alike.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import hooks
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.adaptation.contrastive import bound_logit_scale
from ovseg.engine.checkpoints import CheckpointFolder
from ovseg.engine.hooks import Every, Meter, ProgressBar
from ovseg.engine.schedules import WarmupCosineLR
from ovseg.engine.solver import build_adamw
from ovseg.engine.trainer import Trainer
from ovseg.errors import OvsegError
from ovseg.toy.clip.batches import PairSampler

logger = logging.getLogger(__name__)

LAST = "last.pth"
_WORD_SCALE = 10.0  # inverse temperature between words: fixed, lest the temperature alone separate them


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        steps: of training.
        text_steps: the first so many train the text tower as well; then it is locked, as LiT does (Zhai et al. 2022).
        batch_size: images of a step.
        lr: the highest learning rate.
        weight_decay: of matrices.
        warmup: steps of linear warm-up before the cosine.
        checkpoint_every: steps.
        seed: of the batches.
    """

    steps: int
    text_steps: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: int
    checkpoint_every: int
    seed: int


def contrastive_loss(model: CLIP, images: Tensor, captions: Tensor, prompts: Tensor, named: Tensor) -> Tensor:
    """Return CLIP's loss between images and captions, plus two for words: among images, and among themselves.

    The latter asks a word to be nearest to itself in another prompt (as SimCSE does for sentences, Gao et al. 2021,
    section 3), so that words differ as texts even where the image tower does not yet see the difference.

    Args:
        model: the CLIP.
        images: (B, 3, side, side) float32.
        captions: (B, L) int64 tokens, or (B, D) float32 features.
        prompts: (2, K, L) or (2, K, D) likewise.
        named: (B, K) float32, rows sum to 1.
    """
    image_features = model.encode_image(images, normalize=True)
    texts = torch.cat([captions, *prompts])
    text_features = texts if texts.is_floating_point() else model.encode_text(texts, normalize=True)
    caption_features, words, same_words = text_features.split([len(captions), *map(len, prompts)])
    scale = model.logit_scale.exp()
    of_captions = scale * image_features @ caption_features.T
    target = torch.arange(len(images))
    pairs = (F.cross_entropy(of_captions, target) + F.cross_entropy(of_captions.T, target)) / 2
    in_images = F.cross_entropy(scale * image_features @ words.T, named)
    among_words = F.cross_entropy(_WORD_SCALE * words @ same_words.T, torch.arange(len(words)))
    return pairs + in_images + among_words


class TrainingRun:
    """A run that leaves ``last.pth`` in its folder.

    Args:
        model: trained in place.
        recipe: how.
        folder: gets the checkpoint.
        about: what the log begins with, JSON.

    Attributes:
        log: ``about`` and, as the run goes on, ``steps`` (step and mean loss since the last entry) and ``seconds``.
        step: number of steps done.
    """

    def __init__(self, model: CLIP, recipe: Recipe, folder: Path, about: Mapping[str, Any]) -> None:
        self.model, self.recipe = model, recipe
        self.optimizer = _build_optimizer(model, recipe.lr, recipe.weight_decay)
        entries = {"model": Mapping, "optimizer": Mapping, "step": int, "log": str}
        self.checkpoints = CheckpointFolder(folder, entries, LAST, "--work-dir")
        self.log: dict[str, Any] = {**about, "steps": [], "seconds": 0.0}
        self.step = 0
        self._resumed: Mapping[str, Any] | None = None

    def resume(self) -> None:
        """Load the checkpoint.

        Raises:
            OvsegError: there is none, or it is damaged.
        """
        if (found := self.checkpoints.load_newest()) is None:
            raise OvsegError(f"there is no {self.checkpoints.folder / LAST} to resume from: start without --resume")
        path, self._resumed = found
        with self.checkpoints.reading(path):
            self.model.load_state_dict(self._resumed["model"])
            self.log, self.step = dict(json.loads(self._resumed["log"])), self._resumed["step"]
        logger.info("resumed at step %d", self.step)

    def train(self, sampler: PairSampler) -> None:
        """Train for the steps that are left.

        Raises:
            OvsegError: another run uses the folder, or it cannot be written.
        """
        recipe = self.recipe
        scheduler = WarmupCosineLR(self.optimizer, recipe.warmup, recipe.steps)
        trainer = Trainer(self._losses, self._batches(sampler), self.optimizer, scheduler, seed=recipe.seed)
        if self._resumed is not None:
            state = {"iteration": self.step - 1, "optimizer": self._resumed["optimizer"], "grad_scaler": {}}
            with self.checkpoints.reading(self.checkpoints.folder / LAST):
                trainer.load_state_dict(state)
        started = time.monotonic() - self.log["seconds"]

        def write(step: int, values: Mapping[str, float]) -> None:
            self.log["seconds"] = round(time.monotonic() - started, 1)
            self.log["steps"].append({"step": step, "loss": round(values["loss"], 4)})

        meter = Meter((recipe.checkpoint_every,), recipe.batch_size, "images", write)
        trainer.register_hooks(
            [
                hooks.LRScheduler(self.optimizer, scheduler),
                meter,
                Every(recipe.checkpoint_every, self._save),
                ProgressBar("training", lambda: meter.state),
            ]
        )
        with self.checkpoints.owned():
            trainer.train(self.step, recipe.steps)

    def _batches(self, sampler: PairSampler) -> Iterator[tuple[Tensor, ...]]:
        for step in range(self.step, self.recipe.steps):
            if step >= self.recipe.text_steps and not sampler.encoded:
                self.model.requires_grad_(False)  # all but the image tower and the logit scale
                self.model.visual.requires_grad_(True)
                self.model.logit_scale.requires_grad_(True)
                sampler.encode_texts(self.model)
                logger.info("step %d: the text tower is locked", step)
            yield sampler.batch(self.recipe.seed, step, self.recipe.batch_size)

    def _losses(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"loss": contrastive_loss(self.model, *batch)}

    def _save(self, step: int) -> None:
        self.step = step
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}
        self.checkpoints.save(LAST, {**state, "log": json.dumps(self.log)})


def _build_optimizer(model: CLIP, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only, as CLIP's paper does, and bounds the gradients' norm by 1."""

    def group_of(name: str, parameter: nn.Parameter) -> int:
        return int(parameter.ndim < 2 or "embedding" in name)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = build_adamw(trained, group_of, (weight_decay, 0.0), lr=lr)
    optimizer.register_step_pre_hook(clip)
    bound_logit_scale(optimizer, model)
    return optimizer
