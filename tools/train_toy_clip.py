"""Train the tiny CLIP of the toy world on scenes and their captions, and save ``weights/toy/clip.safetensors``.

    python tools/train_toy_clip.py            # words and pictures, from scratch
    python tools/train_toy_clip.py --init weights/toy/clip.safetensors --text-steps 0 --margin 1.1 1.4 --close-ups 5 \\
        --alone 1.0 --patches 2 --steps 1800 --work-dir output/toy_clip_2
    ... --resume                              # goes on where a killed run stopped

The two commands reproduce the shipped file. The second one teaches the image tower more about shapes, with closer
close-ups and less in them. After ``--text-steps`` the text tower is locked, as LiT does (Zhai et al. 2022): it knows
its 90 words by then, while the image tower goes on learning, which takes it much longer.

Pictures are whole scenes and, as on the web, close-ups: windows around a thing, nothing masked, with captions of
what the window shows, or of its things alone; and patches of ground. The loss is CLIP's symmetric cross entropy over
the pairs of a batch (Radford et al. 2021, section 2.3), and beside it the same for the words of the captions: each
picture against all words, of which its caption's are right, and each word against all words in other prompts.
Colours and grounds alone tell most captions apart, so that pairs of pictures and captions alone would leave the
names of shapes all alike.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from rich.logging import RichHandler
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from ovseg.checkpoint import save_safetensors
from ovseg.data.toy import CLASS_NAMES, COLOURS, SHAPES, STUFF, Scene, Thing, generator_version, make_scene
from ovseg.data.toy.captions import describe, tells_sides
from ovseg.data.toy.catalog import SPLITS
from ovseg.data.toy.scene import size_word
from ovseg.errors import OvsegError, user_errors
from ovseg.files import atomic_path, cache_dir
from ovseg.progress import progress_bar
from ovseg.state_dicts import read_state_dict
from ovseg.vocabulary.templates import get_templates

logger = logging.getLogger("train_toy_clip")

_SHOWN, _SHOWN_GROUND = 0.8, 0.06  # share of a thing that shows, share of a close-up that a ground takes, to be named
_WORD_SCALE = 10.0  # inverse temperature between words: fixed, lest they be told apart by the temperature alone
_STORED_SIDE = 112  # pictures are kept a little larger than the model's input, so that crops stay sharp
_WORD = re.compile(rf"\b(?:(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})|{'|'.join(STUFF)})\b")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", type=Path, default=Path("configs/toy/clip.json"), help="open_clip JSON")
    parser.add_argument("--output", type=Path, default=Path("weights/toy/clip.safetensors"))
    parser.add_argument("--work-dir", type=Path, default=Path("output/toy_clip"), help="checkpoint and log.json")
    parser.add_argument("--init", type=Path, help="start from these weights (.safetensors) instead of from scratch")
    parser.add_argument("--scenes", type=int, default=3000, help="the train split and, above it, unlabelled scenes")
    parser.add_argument("--close-ups", type=int, default=4, help="windows around single things, for each scene")
    parser.add_argument(
        "--margin", type=float, nargs=2, default=(1.1, 1.6), help="half the side of a close-up, in radii of the thing"
    )
    parser.add_argument("--alone", type=float, default=0.5, help="share of close-ups whose captions leave out grounds")
    parser.add_argument("--patches", type=int, default=1, help="windows that show no thing, for each scene")
    parser.add_argument("--captions", type=int, default=6, help="captions written for each picture")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--text-steps", type=int, default=800, help="the first so many train the text tower as well")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up before the cosine")
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work-dir")
    return parser.parse_args()


@dataclass(frozen=True)
class ViewRecipe:
    """Which pictures are made of a scene: see the command line for their meaning."""

    margin: tuple[float, float] = (1.0, 1.0)
    close_ups: int = 0
    alone: float = 0.0
    patches: int = 0
    captions: int = 2


def close_up(
    scene: Scene, index: int, margin: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, list[Thing], list[str]]:
    """A window around one thing, with nothing masked: its pixels, and the things and grounds that it shows."""
    thing, (height, width) = scene.things[index], scene.labels.shape
    half = rng.uniform(*margin) * thing.radius
    x, y = np.array(thing.centre) + rng.uniform(-0.25, 0.25, 2) * thing.radius
    window = (
        slice(int(max(0, y - half)), int(min(height, y + half))),
        slice(int(max(0, x - half)), int(min(width, x + half))),
    )
    labels, instances = scene.labels[window], scene.instances[window]
    things = [
        replace(other, size=size_word(other.radius, labels.shape))
        for k, other in enumerate(scene.things, 1)
        if k == index + 1 or (instances == k).sum() > _SHOWN * other.area
    ]
    return scene.image[window], things, shown_grounds(scene, window)


def patch(scene: Scene, rng: np.random.Generator, tries: int = 10) -> tuple[np.ndarray, list[str]] | None:
    """A window with hardly a thing in it: its pixels and its grounds; None if none is found in a few tries."""
    height, width = scene.labels.shape
    for _ in range(tries):
        side = int(rng.uniform(0.2, 0.5) * min(height, width))
        y, x = int(rng.integers(height - side)), int(rng.integers(width - side))
        window = (slice(y, y + side), slice(x, x + side))
        if (scene.instances[window] > 0).mean() < _SHOWN_GROUND:
            return scene.image[window], shown_grounds(scene, window)
    return None


def shown_grounds(scene: Scene, window: tuple[slice, slice]) -> list[str]:
    """The grounds that take a good part of a window, largest first."""
    labels = scene.labels[window]
    ground = np.bincount(labels[scene.instances[window] == 0], minlength=len(CLASS_NAMES))
    return [CLASS_NAMES[k] for k in np.argsort(-ground, kind="stable") if ground[k] > _SHOWN_GROUND * labels.size]


def name_alone(rng: np.random.Generator, names: Sequence[str], count: int) -> tuple[str, ...]:
    """Captions that tell some names and nothing else."""
    templates = get_templates("vild")
    return tuple(templates[int(rng.integers(len(templates)))].format(" and ".join(names)) for _ in range(count))


def views(seed: int, recipe: ViewRecipe) -> list[tuple[np.ndarray, tuple[str, ...]]]:
    """A whole scene, close-ups and patches of it, each with its captions."""
    scene, rng = make_scene(seed, recipe.captions), np.random.default_rng([seed, 2])
    pictures = [(scene.image, scene.captions)]
    for index in rng.permutation(len(scene.things))[: recipe.close_ups]:
        image, things, stuff = close_up(scene, int(index), recipe.margin, rng)
        if recipe.alone and rng.random() < recipe.alone:
            pictures.append((image, name_alone(rng, [thing.name for thing in things], recipe.captions)))
        elif stuff:
            pictures.append((image, describe(rng, things, stuff, recipe.captions)))
    for found in (patch(scene, rng) for _ in range(recipe.patches)):
        if found is not None:
            pictures.append((found[0], name_alone(rng, found[1], recipe.captions)))
    side = (_STORED_SIDE, _STORED_SIDE)
    return [(cv2.resize(image, side, interpolation=cv2.INTER_AREA), texts) for image, texts in pictures]


def load_views(first: int, num_scenes: int, recipe: ViewRecipe) -> tuple[Tensor, list[list[str]]]:
    """Views of the scenes of seeds ``first`` and up, kept in the user's cache.

    Returns:
        Pictures (N, 3, S, S) uint8 and the captions of each.
    """
    name = "_".join(map(str, ("clip", first, num_scenes, *recipe.margin, *astuple(recipe)[1:])))
    path = cache_dir() / "toy" / generator_version() / f"{name}.npz"
    if not path.is_file():
        seeds = range(first, first + num_scenes)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            drawing = pool.map(partial(views, recipe=recipe), seeds)
            drawn = [view for scene in track(drawing, "drawing", total=num_scenes, transient=True) for view in scene]
        images, captions = zip(*drawn, strict=True)
        with atomic_path(path) as temporary:
            np.savez(temporary, images=np.stack(images), captions=np.array(captions))
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
        return images, arrays["captions"].tolist()


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..255 to float32 with CLIP's mean and standard deviation."""
    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def augment(images: Tensor, side: int, mirror: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Light crops, and mirroring where the caption allows: (B, 3, S, S) to (B, 3, side, side)."""
    count = len(images)
    scale = rng.uniform(0.84, 1.0, (count, 1))
    flip = np.where(mirror & (rng.random(count) < 0.5), -1.0, 1.0)[:, None]
    shift, zero = rng.uniform(-1, 1, (count, 2, 1)) * (1 - scale[:, None]), np.zeros_like(scale)
    linear = np.stack([np.hstack([scale * flip, zero]), np.hstack([zero, scale])], axis=1)
    theta = torch.from_numpy(np.concatenate([linear, shift], axis=2)).float()
    grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (count, 1, 1, 1))).float()
    cropped = F.grid_sample(images.float() * gain, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return normalise(cropped.clamp(0, 255))


class PairSampler:
    """Batches of pictures with captions and words; a batch depends on nothing but the seed and the step."""

    def __init__(self, images: Tensor, captions: list[list[str]], tokenizer: SimpleTokenizer, side: int) -> None:
        self.images, self.captions, self.side = images, captions, side
        self.texts = torch.stack([tokenizer(row) for row in captions])  # (N, C, L)
        templates = get_templates("vild")
        self.prompts = torch.stack(
            [tokenizer([t.format(word) for t in templates]) for word in CLASS_NAMES]
        )  # (K, T, L)
        named = [set(_WORD.findall(row[0])) for row in captions]  # the first caption names all that is there
        self.named = torch.tensor([[word in words for word in CLASS_NAMES] for words in named]).float()
        self.named /= self.named.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def encode_texts(self, model: CLIP) -> None:
        """Hand out features in place of tokens from now on, of a text tower that does not change any more."""
        self.texts, self.prompts = (
            torch.cat([model.encode_text(part, normalize=True) for part in tokens.flatten(0, 1).split(512)]).unflatten(
                0, tokens.shape[:2]
            )
            for tokens in (self.texts, self.prompts)
        )

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One batch.

        Returns:
            Pictures (B, 3, side, side) float32, one caption of each (B, L) int64, two prompts for every word (2, K, L)
            int64 (features float32 of D instead of tokens after :meth:`encode_texts`), and what share of a picture's
            words each word is (B, K) float32.
        """
        per_epoch = len(self.images) // size
        order = np.random.default_rng([seed, step // per_epoch]).permutation(len(self.images))
        rows = order[step % per_epoch * size :][:size]
        rng = np.random.default_rng([seed, 1, step])
        which = rng.integers(0, self.texts.shape[1], size)
        mirror = np.array([not tells_sides(self.captions[row][k]) for row, k in zip(rows, which, strict=True)])
        words, templates = self.prompts.shape[:2]
        prompts = self.prompts[torch.arange(words), rng.integers(0, templates, (2, words))]
        return augment(self.images[rows], self.side, mirror, rng), self.texts[rows, which], prompts, self.named[rows]


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


def encode_words(model: CLIP, tokenizer: SimpleTokenizer, words: tuple[str, ...]) -> Tensor:
    """(K, D) unit vectors: the mean over the ``vild`` templates, as at test time."""
    templates = get_templates("vild")
    tokens = tokenizer([template.format(word) for word in words for template in templates])
    features = model.encode_text(tokens, normalize=True).unflatten(0, (len(words), len(templates)))
    return F.normalize(features.mean(dim=1), dim=-1)


def thing_crops(seeds: range, side: int, masked: bool) -> tuple[Tensor, Tensor]:
    """The box of every thing of some scenes, on CLIP's mean colour if masked: (M, 3, side, side) and class (M,)."""
    mean = np.array(OPENAI_DATASET_MEAN) * 255
    crops, classes = [], []
    for scene in map(make_scene, seeds):
        for index, thing in enumerate(scene.things, 1):
            mask = scene.instances == index
            x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
            window = (slice(y, y + height), slice(x, x + width))
            shown = mask[window][..., None] if masked else True
            crop = np.where(shown, scene.image[window], mean).astype(np.float32)
            crops.append(cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC))
            classes.append(CLASS_NAMES.index(thing.name))
    return normalise(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)), torch.tensor(classes)


@torch.no_grad()
def evaluate(model: CLIP, tokenizer: SimpleTokenizer, side: int) -> dict[str, float]:
    """What the model can do without any mask: retrieval, words of a scene, and names of crops."""
    model.eval()
    first, count = SPLITS["val"]
    seeds = range(first, first + count)
    images, captions = load_views(first, count, ViewRecipe())
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    image_features = model.encode_image(normalise(small), normalize=True)
    text_features = model.encode_text(tokenizer([row[0] for row in captions]), normalize=True)
    similarity = image_features @ text_features.T
    target = torch.arange(count)
    words = encode_words(model, tokenizer, CLASS_NAMES)
    ranked = (image_features @ words.T).argsort(dim=1, descending=True)
    present = torch.zeros(count, len(CLASS_NAMES), dtype=torch.bool)
    for row, scene in enumerate(map(make_scene, seeds)):
        present[row, torch.from_numpy(np.unique(scene.labels)).long()] = True
    hits = present.gather(1, ranked).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    result = {
        "image_to_text_recall_at_1": (similarity.argmax(1) == target).float().mean(),
        "text_to_image_recall_at_1": (similarity.argmax(0) == target).float().mean(),
        "scene_words_mean_average_precision": ((precision * hits).sum(1) / hits.sum(1)).mean(),
    }
    colours, shapes = (np.array([name.split()[end] for name in CLASS_NAMES]) for end in (0, -1))
    is_pair = torch.tensor([" " in name for name in CLASS_NAMES])
    for kind in ("masked", "unmasked"):
        crops, classes = thing_crops(seeds, side, masked=kind == "masked")
        scores = model.encode_image(crops, normalize=True) @ words.T
        pair = scores.masked_fill(~is_pair, -torch.inf).argmax(dim=1)
        result |= {
            f"{kind}_crop_top1": (scores.argmax(dim=1) == classes).float().mean(),
            f"{kind}_crop_top5": (scores.topk(5).indices == classes[:, None]).any(1).float().mean(),
            f"{kind}_crop_colour_among_pairs": (colours[pair] == colours[classes]).mean(),
            f"{kind}_crop_shape_among_pairs": (shapes[pair] == shapes[classes]).mean(),
        }
    model.train()
    return {key: round(float(value), 4) for key, value in result.items()}


def build_optimizer(model: CLIP, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only, as CLIP's paper does."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in trained if p.ndim < 2 or "embedding" in name]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)


def lock_text(model: CLIP) -> None:
    """Let only the image tower and the logit scale train from now on."""
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    model.logit_scale.requires_grad_(True)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * 0.5 * (1 + math.cos(math.pi * (step - args.warmup) / (args.steps - args.warmup)))


def train(args: argparse.Namespace) -> tuple[CLIP, dict[str, Any]]:
    """Train from scratch or from the checkpoint of a killed run; returns the model and the run's log."""
    torch.manual_seed(args.seed)
    architecture = json.loads(args.architecture.read_text(encoding="utf-8"))
    model = CLIP(**architecture)
    side = architecture["vision_cfg"]["image_size"]
    tokenizer = SimpleTokenizer(context_length=architecture["text_cfg"]["context_length"])
    if args.init:
        model.load_state_dict(read_state_dict(args.init))
    optimizer = build_optimizer(model, args.lr, args.weight_decay)
    settings = {key: str(value) for key, value in sorted(vars(args).items()) if key != "resume"}
    log: dict[str, Any] = {"settings": settings, "architecture": architecture, "steps": [], "seconds": 0.0}
    log["generator_version"] = generator_version()
    checkpoint, step = args.work_dir / "last.pth", 0
    if args.resume:
        if not checkpoint.is_file():
            raise OvsegError(f"there is no {checkpoint} to resume from: start without --resume")
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log, step = json.loads(state["log"]), state["step"]
        logger.info("resumed at step %d", step)

    recipe = ViewRecipe(tuple(args.margin), args.close_ups, args.alone, args.patches, args.captions)
    sampler = PairSampler(*load_views(0, args.scenes, recipe), tokenizer, side)
    with progress_bar() as progress:
        task = progress.add_task("training", total=args.steps, completed=step)
        started, recent = time.monotonic() - log["seconds"], []
        while step < args.steps:
            if step >= args.text_steps and not sampler.texts.is_floating_point():
                lock_text(model)
                sampler.encode_texts(model)
                logger.info("step %d: the text tower is locked", step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args)
            loss = contrastive_loss(model, *sampler.batch(args.seed, step, args.batch_size))
            optimizer.zero_grad()  # to None, so that what is locked is left alone by the optimizer, decay included
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
            recent.append(loss.item())
            progress.update(task, advance=1, description=f"loss {recent[-1]:.3f}")
            if step % args.checkpoint_every == 0 or step == args.steps:
                log["seconds"] = round(time.monotonic() - started, 1)
                log["steps"].append({"step": step, "loss": round(sum(recent) / len(recent), 4)})
                recent.clear()
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                with atomic_path(checkpoint) as path:
                    torch.save(state | {"log": json.dumps(log)}, path)
                logger.info("step %d: %s", step, log["steps"][-1])
    return model, log


def main() -> None:
    args = parse_args()
    if not args.architecture.is_file():
        raise OvsegError(f"there is no {args.architecture}: give an open_clip JSON with --architecture")
    if args.scenes < args.batch_size or args.captions < 1:
        raise OvsegError("--scenes must be at least --batch-size, and --captions at least 1")
    model, log = train(args)
    half = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_safetensors(half, args.output)
    model.load_state_dict(half)  # judge what is shipped
    tokenizer = SimpleTokenizer(context_length=log["architecture"]["text_cfg"]["context_length"])
    log["evaluation"] = evaluate(model, tokenizer, log["architecture"]["vision_cfg"]["image_size"])
    with atomic_path(args.work_dir / "log.json") as path:
        path.write_text(json.dumps(log, indent=1), encoding="utf-8")
    for name, value in log["evaluation"].items():
        logger.info("%s: %.1f %%", name, 100 * value)
    logger.info("saved %s (%.1f MB)", args.output, args.output.stat().st_size / 1e6)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    with user_errors():
        main()
