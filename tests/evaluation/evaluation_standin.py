"""A small registered data set whose images encode their labels, and a model that reads them; for evaluation tests."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn
from torch.nn import functional as F

CLASSES = ["sky ", "striped cat", "red, brick wall", "bus", "water"]
EVALUATION_SET = {"base": [0, 1, 2], "novel": [3, 4]}
NUM_IMAGES = 7
NAME = "evaluation_standin"
STEP = 50  # grey levels between classes


def make_images(folder: Path) -> None:
    """Label maps of six blocks with a border of ignored pixels, images of class colour; every third block lies."""
    rng = np.random.default_rng(5)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for index in range(NUM_IMAGES):
        height, width = 24 + 4 * index, 40 - 2 * index
        blocks = rng.integers(0, len(CLASSES) - 1, size=(2, 3))  # the last class never occurs
        spread = np.ones((height // 2 + 1, width // 3 + 1), dtype=np.int64)
        labels = np.kron(blocks, spread)[:height, :width].astype(np.uint8)
        seen = labels.copy()
        seen[: height // 3, : width // 4] = rng.integers(0, len(CLASSES))
        labels[:2] = 255
        image = np.repeat((seen * STEP)[:, :, None], 3, axis=2)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")


def register(folder: Path) -> str:
    """Register the data set under :data:`NAME` again, with the files of ``folder``."""
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)

    def records() -> list[dict]:
        found = []
        for path in sorted((folder / "images").iterdir()):
            with Image.open(path) as image:
                width, height = image.size
            label_file = str(folder / "labels" / path.name)
            found.append({"file_name": str(path), "sem_seg_file_name": label_file, "height": height, "width": width})
        return found

    DatasetCatalog.register(NAME, records)
    MetadataCatalog.get(NAME).set(
        stuff_classes=CLASSES, ignore_label=255, evaluator_type="sem_seg", evaluation_set=EVALUATION_SET
    )
    return NAME


class StandIn(nn.Module):
    """Scores by nearness to a class's grey level; one proposal per class and one of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[dict] = []

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        self.requests.extend(batched_inputs)
        return [self._one(sample) for sample in batched_inputs]

    def _one(self, sample: dict) -> dict:
        image = sample["image"].float().mean(dim=0)
        levels = torch.arange(len(CLASSES)).view(-1, 1, 1) * STEP
        scores = -(image - levels).abs() / 255
        size = (sample.get("height", image.shape[0]), sample.get("width", image.shape[1]))
        scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        asked = sample.get("outputs", ("sem_seg",))
        answer = {}
        if "sem_seg" in asked:
            answer["sem_seg"] = scores
        if "label_map" in asked:
            answer["score_map"], answer["label_map"] = scores.max(dim=0)
        if "proposals" in asked:
            every = torch.ones(1, *size, dtype=torch.bool)
            answer["proposals"] = torch.cat([F.one_hot(scores.argmax(0), len(CLASSES)).permute(2, 0, 1).bool(), every])
        return answer


def configuration(output_dir: Path, *opts: object):
    """An ovseg configuration that evaluates the stand-in data set at full size."""
    from ovseg.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("DATASETS.TEST", (NAME,), "OUTPUT_DIR", str(output_dir), "MODEL.DEVICE", "cpu"),
            *("INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", 0, "DATALOADER.NUM_WORKERS", 0),
            *("TEST.PROPOSAL_RECALL", True, "TEST.SAVE_PREDICTIONS", True),
            *opts,
        ]
    )
    return cfg


def work(folder: Path, output: str, rank: int, world_size: int, seconds: float) -> None:
    """Evaluate in one of several processes, resuming, and saving what it has after every image.

    Args:
        folder: of the data set, and of ``output``.
        seconds: how long an image takes.
    """
    import torch.distributed as dist

    from ovseg.evaluation import partial, runner

    partial.SAVE_PERIOD = 0
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    register(folder)
    model = StandIn()
    model.register_forward_hook(lambda *_: time.sleep(seconds))
    runner.evaluate_all(configuration(folder / output, "TEST.REPORT", True), model, resume=True)
    dist.barrier()  # a process that leaves while another still talks to it can abort that one
    dist.destroy_process_group()
