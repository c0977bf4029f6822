"""Training the toy world's CLIP: what is minimised, and a run that goes on where it was killed.

The loss is CLIP's symmetric cross entropy over the pairs of a batch (Radford et al. 2021, section 2.3), and beside it
the same for the words of the captions: each picture against all words, of which its caption's are right, and each word
against all words in other prompts. Colours and grounds alone tell most captions apart, so that pairs of pictures and
captions alone would leave the names of shapes all alike.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path
from ovseg.io.progress import progress_bar
from ovseg.toy.clip.batches import PairSampler

logger = logging.getLogger(__name__)

_WORD_SCALE = 10.0  # inverse temperature between words: fixed, lest they be told apart by the temperature alone


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes:
        steps: of training.
        text_steps: the first so many train the text tower as well; then it is locked, as LiT does (Zhai et al. 2022).
        batch_size: pictures of a step.
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

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to nothing."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


def contrastive_loss(model: CLIP, images: Tensor, captions: Tensor, prompts: Tensor, named: Tensor) -> Tensor:
    """CLIP's loss between pictures and captions, plus two for words: among pictures, and among themselves.

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
    in_pictures = F.cross_entropy(scale * image_features @ words.T, named)
    among_words = F.cross_entropy(_WORD_SCALE * words @ same_words.T, torch.arange(len(words)))
    return pairs + in_pictures + among_words


class TrainingRun:
    """A run that leaves ``last.pth`` in its folder.

    Args:
        model: trained in place.
        recipe: how.
        folder: gets the checkpoint.
        about: what the log begins with, JSON.

    Attributes:
        log: ``about`` and, as the run goes on, ``steps`` (step and mean loss since the last entry) and ``seconds``.
    """

    def __init__(self, model: CLIP, recipe: Recipe, folder: Path, about: Mapping[str, Any]) -> None:
        self.model, self.recipe = model, recipe
        self.optimizer = _build_optimizer(model, recipe.lr, recipe.weight_decay)
        self.checkpoint = folder / "last.pth"
        self.log: dict[str, Any] = {**about, "steps": [], "seconds": 0.0}
        self.step = 0

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            OvsegError: there is none.
        """
        if not self.checkpoint.is_file():
            raise OvsegError(f"there is no {self.checkpoint} to resume from: start without --resume")
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log, self.step = json.loads(state["log"]), state["step"]
        logger.info("resumed at step %d", self.step)

    def train(self, sampler: PairSampler) -> None:
        """Take the steps that are left."""
        recipe = self.recipe
        started, losses = time.monotonic() - self.log["seconds"], []
        with progress_bar() as progress:
            task = progress.add_task("training", total=recipe.steps, completed=self.step)
            while self.step < recipe.steps:
                if self.step >= recipe.text_steps and not sampler.encoded:
                    _lock_text(self.model)
                    sampler.encode_texts(self.model)
                    logger.info("step %d: the text tower is locked", self.step)
                losses.append(self._take_step(sampler))
                progress.update(task, advance=1, description=f"loss {losses[-1]:.3f}")
                if self.step % recipe.checkpoint_every == 0 or self.step == recipe.steps:
                    self.log["seconds"] = round(time.monotonic() - started, 1)
                    self.log["steps"].append({"step": self.step, "loss": round(sum(losses) / len(losses), 4)})
                    losses.clear()
                    self._save()
                    logger.info("step %d: %s", self.step, self.log["steps"][-1])

    def _take_step(self, sampler: PairSampler) -> float:
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.step)
        loss = contrastive_loss(self.model, *sampler.batch(recipe.seed, self.step, recipe.batch_size))
        self.optimizer.zero_grad()  # to None, so that what is locked is left alone by the optimizer, decay included
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.step += 1
        return loss.item()

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        with atomic_path(self.checkpoint) as path:
            torch.save(state | {"log": json.dumps(self.log)}, path)


def _build_optimizer(model: CLIP, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only, as CLIP's paper does."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in trained if p.ndim < 2 or "embedding" in name]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)


def _lock_text(model: CLIP) -> None:
    """Let only the image tower and the logit scale train from now on."""
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    model.logit_scale.requires_grad_(True)
