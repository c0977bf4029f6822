"""A tiny CLIP, a few pairs, and what the processes of a test do."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from ovseg.adaptation import run_folder
from ovseg.adaptation.finetune import Job, finetune
from ovseg.adaptation.pairs import ShardWriter
from ovseg.adaptation.recipe import Recipe
from ovseg.checkpoint import save_safetensors
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


def disc(generator: np.random.Generator, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture with a disc, uint8 (h, w, 3), and the disc's mask."""
    height, width = generator.integers(20, 40, 2)
    y, x = np.mgrid[:height, :width]
    mask = ((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2 < 0.2
    image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    image[mask] = np.clip(colour + generator.normal(0, 10, (int(mask.sum()), 3)), 0, 255)
    return image, mask


def write_pairs(folder: Path, count: int = 22) -> Path:
    """A finished folder of pairs in one shard."""
    generator = np.random.default_rng(0)
    with ShardWriter(folder / "pairs-00000.tar") as shard:
        for k in range(count):
            noun = list(NOUNS)[k % len(NOUNS)]
            image, mask = disc(generator, NOUNS[noun])
            shard.write(f"{k:09d}_000", image, mask, {"text": noun})
    (folder / "summary.json").write_text("{}")
    return folder


def make_job(inputs: Path, output: Path, tune: str = "full", **options: object) -> Job:
    """A job on the inputs that the ``inputs`` fixture has written; options go to the recipe or the job."""
    job = {key: options.pop(key) for key in ("val", "resume", "clip", "depth_asked", "pairs") if key in options}
    defaults = {"epochs": 2, "batch_size": 4, "warmup": 2, "lr": 1e-3, "workers": 0, "checkpoint_every": 2}
    recipe = Recipe(**{**defaults, "log_every": 2, "depth": 2, **options}).of_mode(tune)
    job.setdefault("clip", str(inputs / "clip.safetensors"))
    job.setdefault("pairs", (str(inputs / "pairs"),))
    return Job(architecture=str(inputs / "clip.json"), tune=tune, output=output, recipe=recipe, **job)


def finetune_on_one_thread(job: Job) -> None:
    """What a process of a launched run does."""
    torch.set_num_threads(1)
    finetune(job)


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

    run_folder.torch.save = counting


if __name__ == "__main__":  # INPUTS OUTPUT WRITES_TO_DIE_AFTER [resume]
    _die_after(int(sys.argv[3]))
    finetune_on_one_thread(
        make_job(Path(sys.argv[1]), Path(sys.argv[2]), val=str(Path(sys.argv[1]) / "val"), resume="resume" in sys.argv)
    )
