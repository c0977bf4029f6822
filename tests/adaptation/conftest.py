from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from ovseg.adaptation.finetune import finetune
from ovseg.adaptation.recipe import SHIFT
from tests.adaptation import tiny


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """clip.json, clip.safetensors, pairs/, small/, images/, and val/ with a folder of filled crops for each noun."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_clip(folder)
    tiny.write_pairs(folder / "pairs", folder / "images")
    tiny.write_pairs(folder / "small", folder / "images", radius=0.2)  # most patches are background
    generator = np.random.default_rng(1)
    for noun, colour in tiny.NOUNS.items():
        (folder / "val" / noun.replace(" ", "_")).mkdir(parents=True)
        for k in range(2):
            image, mask = tiny.disc(generator, colour)
            image[~mask] = (124, 116, 103)
            cv2.imwrite(str(folder / "val" / noun.replace(" ", "_") / f"{k}_1.png"), image[:, :, ::-1])
    return folder


@pytest.fixture(scope="session")
def finished(inputs, tmp_path_factory):
    """The output of an uninterrupted run of mode full: 2 epochs of 5 steps."""
    return _run(tiny.make_job(inputs, tmp_path_factory.mktemp("finished") / "run", val=str(inputs / "val")))


@pytest.fixture(scope="session")
def finished_shift(inputs, tmp_path_factory):
    """The same of mode contextual-shift."""
    output = tmp_path_factory.mktemp("finished_shift") / "run"
    return _run(tiny.make_job(inputs, output, SHIFT, val=str(inputs / "val")))


def _run(job):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    finetune(job)
    torch.set_num_threads(threads)
    return job.output
