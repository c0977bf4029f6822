"""Training runs of a small OpenSeg on scenes of the toy world, in this process or as one of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from ovseg.config import load_cfg
from ovseg.engine.trainer import parallel
from ovseg.toy import make_scene
from tests.engine import toy

DATASET = "openseg_engine_test_train"
SYNCED = ("MODEL.OPENSEG.GROUNDING_SYNC", True, "MODEL.RESNETS.NORM", "FrozenBN")
CONFIG = Path(__file__).parents[2] / "configs" / "toy" / "openseg_toy.yaml"


def write_scenes(folder: Path, count: int = 6) -> None:
    for index in range(count):
        scene = make_scene(index)
        Image.fromarray(scene.image).save(folder / f"{index}.png")
        Image.fromarray(scene.labels).save(folder / f"{index}_labels.png")
        (folder / f"{index}.txt").write_text("\n".join(scene.captions))


def register(folder: Path) -> None:
    """Register the scenes of a folder; the last one has no captions, the one before no masks."""
    if DATASET in DatasetCatalog.list():
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
    records = [
        {
            "file_name": str(path.with_suffix(".png")),
            "sem_seg_file_name": str(path.with_name(f"{path.stem}_labels.png")),
            "captions": path.read_text().splitlines(),
            "height": 160,
            "width": 160,
        }
        for path in sorted(folder.glob("*.txt"))
    ]
    records[-1]["captions"] = []
    del records[-2]["sem_seg_file_name"]
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(stuff_classes=["any"], ignore_label=255, evaluator_type="sem_seg")


def configuration(output: Path | str = "unused", *opts: object) -> CfgNode:
    settings = {
        "SOLVER.AMP.ENABLED": False,
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none",
        "MODEL.OPENSEG.CANVAS": 64,
        "MODEL.OPENSEG.NUM_PROPOSALS": 6,
        "MODEL.OPENSEG.NUM_BLOCKS": 1,
        "MODEL.OPENSEG.MASK_LOGIT_SCALE": 1.0,
        "DATASETS.TRAIN": (DATASET,),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "OUTPUT_DIR": str(output),
        "SEED": 5,
    }
    return load_cfg(CONFIG, [*(item for pair in settings.items() for item in pair), *opts])


def train(folder: Path, output: Path, resume: bool = False, die_in_write: int = 0, opts: Sequence[object] = ()) -> None:
    """Train with recorded losses; with ``die_in_write`` the process kills itself within that file that it writes."""
    torch.set_num_threads(1)
    register(folder)
    if die_in_write:
        toy._die_while_writing(die_in_write)
    toy.train_recording(configuration(output, *opts), resume)


def samples(masks: Sequence[int], words: Sequence[Sequence[str]]) -> list[dict]:
    """Return random training samples with these numbers of masks and these words."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for count, caption in zip(masks, words, strict=True):
        instances = Instances((64, 48), gt_masks=torch.rand(count, 64, 48, generator=generator) > 0.7)
        image = torch.rand(3, 1, 1, generator=generator) * 150 + 100 * torch.rand(3, 64, 48, generator=generator)
        found.append({"image": image, "instances": instances, "caption_words": list(caption)})
    return found


BATCH = ((2, 3, 1, 2), (("red circle", "grass"), (), ("blue square",), ("red ring", "sky", "green ring")))


def gradients(rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """Return the losses of a batch, averaged over processes, and the gradients of its share in this process."""
    torch.manual_seed(1)
    model = build_model(configuration("unused", *SYNCED)).train()
    share = len(BATCH[0]) // world
    own = samples(*BATCH)[rank * share : (rank + 1) * share]
    called = parallel(model)  # it must live until the gradients are there
    losses = called(own)
    sum(losses.values()).backward()
    found = {name: loss.detach() for name, loss in losses.items()}
    if world > 1:
        for loss in found.values():
            dist.all_reduce(loss)
            loss /= world
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_of(rank: int, world: int, folder: Path) -> None:
    """Compute gradients, then train, in one of several processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(gradients(rank, world), folder / f"gradients_{rank}.pt")
    train(folder, folder / "two", opts=(*SYNCED, "MODEL.OPENSEG.SEG_LOSS_WEIGHT", 0.0))
    dist.barrier()  # a process that leaves while another still talks to it can abort that one
    dist.destroy_process_group()
