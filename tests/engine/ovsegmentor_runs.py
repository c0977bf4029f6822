"""Training runs of a tiny OVSegmentor on image-text pairs, in this process or as one of several."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from ovseg.engine.trainer import parallel
from tests.engine import toy
from tests.tiny_ovsegmentor import SIDE, tiny_cfg, training_batch

DATASET = "ovsegmentor_engine_test_val"


def write_pairs(folder: Path) -> None:
    """Write ten images with labels, and a table of their captions, pairs and classes."""
    toy.write_dataset(folder)
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "caption", "pairindex", "pairentity", "label", "label_name"])
        for index in range(10):
            word = ("cat", "dog")[index % 2]
            pairs = [[(index + 2) % 10, (index + 4) % 10], [word, word]]
            rows.writerow([f"{index}.png", f"a photo of the red {word} .", *pairs, index % 2, word])


def _own(folder: Path) -> Path:
    """Return a folder of this process below a folder that several write into."""
    own = folder / str(os.getpid())
    own.mkdir(exist_ok=True)
    return own


def configuration(folder: Path, output: Path | str = "unused", stage: int = 2, *opts: object) -> CfgNode:
    """Return the configuration of a training on the pairs of a folder, with evaluations of both kinds."""
    cfg = tiny_cfg(_own(folder), stage=stage)
    settings = {
        "DATASETS.TRAIN": (),
        "DATASETS.TEST": (DATASET,),
        "DATASETS.IMAGE_TEXT.FILE": str(folder / "pairs.csv"),
        "INPUT.IMG_AUG.DEIT_AUG": False,
        "INPUT.IMG_AUG.IMG_SIZE": SIDE,
        "INPUT.TEXT_AUG.MAX_SEQ_LEN": 16,
        "INPUT.MIN_SIZE_TEST": 32,
        "INPUT.FORMAT": "RGB",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.LR_SCHEDULER_NAME": "EpochCosine",
        "SOLVER.BASE_LR": 1e-3,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 5,  # two epochs, of two batches each, and the beginning of a third one
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "TEST.EVAL_PERIOD": 3,
        "TEST.TASKS": ["seg", "cls"],
        "TEST.SAVE_BEST": ["mIoU", "top1"],
        "TEST.ZERO_SHOT.FILE": str(folder / "pairs.csv"),
        "TEST.ZERO_SHOT.NAMES": "",
        "OUTPUT_DIR": str(output),
        "SEED": 5,
    }
    cfg.merge_from_list([*(item for pair in settings.items() for item in pair), *opts])
    return cfg


def register(folder: Path) -> None:
    """Register the labelled images of a folder."""
    if DATASET in DatasetCatalog.list():
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
    records = toy.write_dataset_once(folder)[:4]
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(stuff_classes=["background", "cat"], ignore_label=255, evaluator_type="sem_seg")


def train(folder: Path, output: Path, resume: bool = False, die_in_write: int = 0, stage: int = 2) -> None:
    """Train with recorded losses; with ``die_in_write`` the process kills itself within that file that it writes."""
    torch.set_num_threads(1)
    register(folder)
    if die_in_write:
        toy._die_while_writing(die_in_write)
    toy.train_recording(configuration(folder, output, stage), resume)


def one_step(folder: Path, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """Run the model and its gradients on this process's share of a batch, without random draws.

    Returns:
        losses, averaged over processes; gradients; and the statistics of batch normalisation.
    """
    cfg = tiny_cfg(_own(folder), IMG_ENCODER__DROP_PATH_RATE=0.0, MASKLOSS_PER_GROUP=False)
    file = Path(cfg.MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG)
    sizes = json.loads(file.read_text())
    file.write_text(json.dumps(sizes | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    torch.manual_seed(1)
    model = build_model(cfg).double().train()  # batch normalisation of four samples enlarges rounding errors
    proposer = model.scorer.proposer
    proposer.normalise = lambda images: type(proposer).normalise(proposer, images.double())
    for encoder in (model.img_encoder, model.img_encoder_momentum):
        encoder.layers[0].downsample.assign.sample_gumbel = torch.zeros_like
    batch = training_batch(4)
    share = len(batch) // world
    called = parallel(model)  # it must live until the gradients are there
    losses = called(batch[rank * share : (rank + 1) * share])
    sum(losses.values()).backward()
    found = {name: loss.detach().clone() for name, loss in losses.items()}
    for loss in found.values() if world > 1 else ():
        dist.all_reduce(loss)
        loss /= world
    found |= {f"grad.{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name}


def one_of(rank: int, world: int, folder: Path, output: Path) -> None:
    """Compute one step in one of several processes, then train in a run of which the main process writes the files."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{output}/meeting", rank=rank, world_size=world)
    torch.save(one_step(folder, rank, world), output / f"step_{rank}.pt")
    register(folder)
    toy.train_recording(configuration(folder, output / "two", 2))
    dist.barrier()  # a process that leaves while another still talks to it can abort that one
    dist.destroy_process_group()
