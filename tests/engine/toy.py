"""A model and a data set small enough to train in a test; importing registers both with Detectron2."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ovseg.config import get_cfg

CLASSES = ["dark", "bright"]
DATASET = "engine_test_train"


@META_ARCH_REGISTRY.register()
class EngineTestModel(nn.Module):
    """Classify pixels as dark or bright; with dropout, so that its losses depend on torch's generator."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.dropout = cfg.MODEL.MASK_FORMER.DROPOUT
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, len(CLASSES), 1)

    def forward(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        images = torch.stack([sample["image"] for sample in samples]).float() / 64 - 2
        labels = torch.full((len(images), *images.shape[2:]), 255)
        for target, sample in zip(labels, samples, strict=True):
            for label, mask in zip(sample["instances"].gt_classes, sample["instances"].gt_masks, strict=True):
                target[mask] = label
        features = F.dropout(self.backbone(images), self.dropout, self.training)
        logits = self.head(features)
        # a plain mean over pixels, so that the mean over processes is the mean over the batch
        loss = F.cross_entropy(logits, labels, ignore_index=255, reduction="none").mean()
        return {"loss_pixels": loss, "loss_size": 1e-3 * logits.pow(2).mean()}


def write_dataset(folder: Path, count: int = 10) -> list[dict]:
    """Images of a bright and a dark half with their labels; the last one has no labels."""
    generator = np.random.default_rng(0)
    records = []
    for index in range(count):
        labels = np.zeros((20, 24), np.uint8)
        labels[:, generator.integers(4, 20) :] = 1
        image = (60 + 120 * labels[..., None] + generator.integers(0, 40, (20, 24, 3))).astype(np.uint8)
        labels[:2] = 255
        if index == count - 1:
            labels[:] = 255
        names = {"file_name": folder / f"{index}.png", "sem_seg_file_name": folder / f"{index}_labels.png"}
        Image.fromarray(image).save(names["file_name"])
        Image.fromarray(labels).save(names["sem_seg_file_name"])
        records.append({key: str(name) for key, name in names.items()} | {"height": 20, "width": 24})
    return records


def register(records: list[dict], name: str = DATASET) -> None:
    """Register records, in place of earlier ones."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255, evaluator_type="sem_seg")


def small_cfg(output_dir: Path, **options: object) -> CfgNode:
    """Configuration of the model above; options use ``__`` for the dots of keys."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "EngineTestModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.2
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (DATASET,), ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (16, 20, 24), 64
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [16, 16]
    cfg.INPUT.SIZE_DIVISIBILITY = 16
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.FORMAT = "RGB"
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.BASE_LR = 0.03
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.MAX_ITER = 12
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list([part for key, value in options.items() for part in (key.replace("__", "."), value)])
    return cfg


class RecordLosses(HookBase):
    """Appends the total loss of each iteration to a file of JSON lines."""

    def __init__(self, path: Path):
        self.path = path

    def after_step(self) -> None:
        loss = self.trainer.storage.latest()["total_loss"][0]
        with self.path.open("a") as file:
            file.write(json.dumps([self.trainer.iter, loss]) + "\n")


def train_recording(cfg: CfgNode, resume: bool = False) -> None:
    """Train with every loss recorded in ``OUTPUT_DIR/losses.jsonl`` by the main process."""
    from detectron2.utils import comm

    from ovseg.engine import run

    class Recording(run.Trainer):
        def register_hooks(self, hooks: list) -> None:
            recorder = [RecordLosses(Path(cfg.OUTPUT_DIR) / "losses.jsonl")] if comm.is_main_process() else []
            super().register_hooks([*recorder, *hooks])

    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    original, run.Trainer = run.Trainer, Recording
    try:
        run.train(cfg, resume=resume)
    finally:
        run.Trainer = original


def read_losses(folder: Path) -> dict[int, float]:
    """Losses by iteration; the last run of an iteration counts."""
    return dict(json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines())


def train_in_process(dataset_folder: str, cfg: CfgNode) -> None:
    """What each process of a launched run does."""
    torch.set_num_threads(1)
    register(write_dataset_once(Path(dataset_folder)))
    train_recording(cfg)


def write_dataset_once(folder: Path) -> list[dict]:
    """The records of a folder that :func:`write_dataset` filled."""
    names = sorted(folder.glob("*_labels.png"), key=lambda path: int(path.name.split("_")[0]))
    return [
        {
            "file_name": str(path).replace("_labels", ""),
            "sem_seg_file_name": str(path),
            "height": 20,
            "width": 24,
        }
        for path in names
    ]


def fail_in_second(message: str) -> None:
    """Raise a user's error in the second process while the first one waits for it."""
    from detectron2.utils import comm

    from ovseg.errors import OvsegError

    if comm.get_rank() == 1:
        raise OvsegError(message)
    comm.synchronize()


def kill_second() -> None:
    """Kill the second process while the first one waits for it."""
    from detectron2.utils import comm

    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def _die_while_writing(nth: int) -> None:
    """Make this process kill itself with half of the ``nth`` file on the disk that checkpoints write."""
    to_disk, written = os.fsync, 0

    def die(number: int) -> None:
        nonlocal written
        written += 1
        to_disk(number)
        if written == nth:
            os.truncate(number, os.fstat(number).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die


def train_and_die(dataset_folder: Path, output: Path, nth_write: int, resume: bool) -> None:
    """Train until a file is half written."""
    torch.set_num_threads(1)
    register(write_dataset_once(dataset_folder))
    _die_while_writing(nth_write)
    train_recording(small_cfg(output), resume=resume)
