"""A tiny CLIP, a few pairs, and what the processes of a test do."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import torch

from ovseg.adaptation.finetune import Job, finetune
from ovseg.adaptation.pair_shards import ShardWriter
from ovseg.adaptation.recipe import SHIFT, Recipe
from ovseg.checkpoint import save_safetensors
from ovseg.checkpoint.state_dicts import bare_clip_names, read_state_dict
from ovseg.clip.model import build_clip, find_clip

CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
NOUNS = {"red disc": (220, 30, 40), "green disc": (20, 200, 30), "blue disc": (30, 40, 210), "grey disc": (90, 90, 90)}


def write_clip(folder: Path, **vision: int) -> tuple[str, str]:
    """A random CLIP's configuration and weights; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip.json").write_text(json.dumps({**CLIP, "vision_cfg": {**CLIP["vision_cfg"], **vision}}))
    torch.manual_seed(0)
    model, _ = build_clip(find_clip(str(folder / "clip.json"), "none"))
    save_safetensors(model.state_dict(), folder / "clip.safetensors")
    return str(folder / "clip.json"), str(folder / "clip.safetensors")


def disc(
    generator: np.random.Generator, colour: tuple[int, int, int], radius: float = 0.447
) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image with a disc, uint8 (h, w, 3), and the disc's mask; the radius is relative to the sides."""
    height, width = generator.integers(20, 40, 2)
    y, x = np.mgrid[:height, :width]
    mask = ((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2 < radius**2
    image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    image[mask] = np.clip(colour + generator.normal(0, 10, (int(mask.sum()), 3)), 0, 255)
    return image, mask


def write_pairs(folder: Path, images: Path, count: int = 22, radius: float = 0.447) -> Path:
    """A finished folder of pairs in one shard, and their whole images, each of two pairs: 0.jpg, 1.jpg, ..."""
    generator = np.random.default_rng(2)
    images.mkdir(parents=True, exist_ok=True)
    for k in range(count // 2):
        cv2.imwrite(str(images / f"{k}.jpg"), generator.integers(0, 256, (48, 64, 3)).astype(np.uint8))
    generator = np.random.default_rng(0)
    with ShardWriter(folder / "pairs-00000.tar") as shard:
        for k in range(count):
            noun = list(NOUNS)[k % len(NOUNS)]
            image, mask = disc(generator, NOUNS[noun], radius)
            shard.write(f"{k:09d}_000", image, mask, {"text": noun, "image": f"{k // 2}.jpg"})
    (folder / "summary.json").write_text("{}")
    return folder


def make_job(inputs: Path, output: Path, tune: str = "full", **options: object) -> Job:
    """A job on the inputs that the ``inputs`` fixture has written; options go to the recipe or the job."""
    names = ("val", "resume", "clip", "depth_asked", "pairs", "image_root", "val_image_root")
    job = {key: options.pop(key) for key in names if key in options}
    defaults = {"epochs": 2, "batch_size": 4, "warmup": 2, "lr": 1e-3, "workers": 0, "checkpoint_every": 2}
    defaults |= {"log_every": 2, "depth": 2, "replace_ratio": 0.5}
    recipe = Recipe(**{**defaults, **options}).of_mode(tune)
    job.setdefault("clip", str(inputs / "clip.safetensors"))
    job.setdefault("pairs", (str(inputs / ("small" if tune == SHIFT else "pairs")),))
    job.setdefault("image_root", str(inputs / "images"))
    job.setdefault("val_image_root", str(inputs / "images"))
    return Job(architecture=str(inputs / "clip.json"), tune=tune, output=output, recipe=recipe, **job)


def finetune_on_one_thread(*jobs: Job) -> None:
    """What a process of a launched run does."""
    torch.set_num_threads(1)
    for job in jobs:
        finetune(job)


def metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs have given the same weights and figures, to the last bit."""
    for name in ("epoch_1.pt", "epoch_2.pt", "last.pt", "best.safetensors"):
        torch.testing.assert_close(read_state_dict(ours / name), read_state_dict(theirs / name), rtol=0, atol=0)
    a, b = ([(m["step"], m.get("loss"), m.get("val/top1")) for m in metrics(folder)] for folder in (ours, theirs))
    assert a == b


def changed(before: Path | str, after: Path | str) -> set[str]:
    """Names of CLIP's tensors that differ or are new in the second file."""
    before, after = (bare_clip_names(read_state_dict(file)) for file in (before, after))
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


def _die_after(writes: int) -> None:
    """Kill this process when so many checkpoint files are on the disk, and half of the next one."""
    save, done = torch.save, 0

    def counting(content, file) -> None:
        nonlocal done
        save(content, file)
        done += 1
        if done > writes:
            file.flush()
            os.truncate(file.fileno(), file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = counting


def finetune_and_die(inputs: Path, output: Path, writes: int, resume: bool) -> None:
    """Fine-tune until so many checkpoint files are on the disk."""
    _die_after(writes)
    finetune_on_one_thread(make_job(inputs, output, val=str(inputs / "val"), resume=resume))
