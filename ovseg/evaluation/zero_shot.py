"""Zero-shot classification of whole images, such as ImageNet's (OVSegmentor, specification 6 and 7.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import transforms

from ovseg.data.mapper import to_tensor
from ovseg.data.sample_loader import SampleLoader
from ovseg.data.tables import Table
from ovseg.errors import OvsegError, shown
from ovseg.evaluation.report import write_json
from ovseg.evaluation.top_hits import TopHits
from ovseg.io.files import is_file
from ovseg.io.images import decode_image
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

TASK = "cls"  # in TEST.TASKS
FOLDER = "zero_shot"  # of the result, and what it is called in results
ROOT, FILE, NAMES = (f"TEST.ZERO_SHOT.{name}" for name in ("ROOT", "FILE", "NAMES"))
RESIZED = 256 / 224  # shorter side of an image before its centre is cropped, relative to the crop


class LabelledImages(Dataset):
    """Rows of a table with the columns ``image_id``, a file, and ``label``, a number from 0.

    Items are a centre crop uint8 (3, S, S) RGB and its label; or an OvsegError for an image that cannot be read.

    Args:
        path: of the table, csv or tsv.
        root: folder of the images; "" for that of the table.
        side: S, pixels.
        upright: rotate images as their EXIF data say.

    Attributes:
        labels: int64, of all rows.

    Raises:
        OvsegError: the table lacks columns, rows, or numbers.
    """

    def __init__(self, path: str | Path, root: str | Path, side: int, upright: bool = False):
        self.table, self.root, self.upright = Table(path), Path(root) if root else Path(path).parent, upright
        self.table.need(("image_id", "label"), "such as ImageNet's val.csv with image_id,label,label_name,caption")
        try:
            self.labels = np.array([int(cell) for cell in self.table.column("label")], np.int64)
        except ValueError as error:
            raise OvsegError(f"a label of {path} is no whole number ({error}): number the classes from 0") from error
        if not len(self.labels) or self.labels.min() < 0:
            raise OvsegError(f"{path} has no rows, or a label below 0: number the classes from 0")
        self._crop = transforms.Compose([transforms.Resize(int(side * RESIZED)), transforms.CenterCrop(side)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | OvsegError:
        path = self.root / self.table[index]["image_id"].strip()
        try:
            if not is_file(path):
                raise OvsegError(f"there is no image {path}: correct {ROOT}, the folder of the images")
            image = Image.fromarray(decode_image(path, str(path), self.upright))
        except OvsegError as error:
            return error
        return to_tensor(np.asarray(self._crop(image))), int(self.labels[index])

    def class_names(self, names: str) -> list[str]:
        """Return the names of the classes; ``TEST.ZERO_SHOT.NAMES`` documents the argument.

        Raises:
            OvsegError: labels have no name.
        """
        if names == "imagenet":
            from open_clip import IMAGENET_CLASSNAMES

            found = list(IMAGENET_CLASSNAMES)
        elif names:
            found = list(Vocabulary.from_class_list(names).names)
        else:
            self.table.need(("label_name",), f"or set {NAMES}")
            named = dict(zip(self.labels.tolist(), self.table.column("label_name"), strict=True))
            if lacking := set(range(max(named) + 1)) - named.keys():
                raise OvsegError(f"{self.table.path} has no row of class {min(lacking)}, so no name: set {NAMES}")
            found = [named[label] for label in range(len(named))]
        if self.labels.max() >= len(found):
            raise OvsegError(
                f"{self.table.path} has the label {self.labels.max()}, but {NAMES} {shown(names)} has {len(found)} "
                "classes: name the file of its classes"
            )
        return found


def check_zero_shot(cfg: CfgNode) -> None:
    """Check the settings of the classification, if ``TEST.TASKS`` has one.

    Raises:
        OvsegError: the system has none, or the table cannot be used.
    """
    if TASK in cfg.TEST.TASKS:
        _images(cfg).class_names(cfg.TEST.ZERO_SHOT.NAMES)


def zero_shot_classification(cfg: CfgNode, model: nn.Module, iteration: int | None = None) -> dict[str, float]:
    """Classify the images of ``TEST.ZERO_SHOT`` by their global features and the names of the classes.

    Each process takes its share of the images. The main process writes ``inference/zero_shot/results.json``.

    Args:
        model: OVSegmentor, not wrapped.
        iteration: of the training.

    Returns:
        ``top1`` and ``top5`` accuracy in percent, in all processes.

    Raises:
        OvsegError: see :func:`check_zero_shot`; or an image cannot be read.
    """
    own, images = cfg.TEST.ZERO_SHOT, _images(cfg)
    names = images.class_names(own.NAMES)
    share = range(comm.get_rank(), len(images), comm.get_world_size())
    batches = [list(share[first : first + own.BATCH]) for first in range(0, len(share), own.BATCH)]
    loader = SampleLoader(images, batches, cfg.DATALOADER.NUM_WORKERS, collate=_stack)
    with inference_context(model), torch.no_grad():
        hits = TopHits(model.class_embeddings(names, own.TEMPLATES))
        for pixels, labels in loader:
            normalised = model.scorer.proposer.normalise(pixels.to(model.device).float())
            hits.add(F.normalize(model.encode_image(normalised)["image_emb"].float(), dim=-1), labels)
    hits.add_other_processes()
    result = dict(zip(("top1", "top5"), hits.accuracies(), strict=True))
    text = "zero-shot classification of %d images of %s: top-1 %.2f, top-5 %.2f"
    logger.info(text, len(images), own.FILE, *result.values())
    if comm.is_main_process():
        settings = {"file": own.FILE, "names": own.NAMES, "templates": own.TEMPLATES, "iteration": iteration}
        record = {"num_images": len(images), "num_classes": len(names), **settings, "results": result}
        write_json(Path(cfg.OUTPUT_DIR) / "inference" / FOLDER / "results.json", record)
    return result


def _images(cfg: CfgNode) -> LabelledImages:
    own = cfg.TEST.ZERO_SHOT
    if cfg.MODEL.META_ARCHITECTURE != "OVSegmentor":
        raise OvsegError(
            f"TEST.TASKS has {TASK}, but {cfg.MODEL.META_ARCHITECTURE} classifies no whole images: set it to [seg]"
        )
    if not own.FILE:
        raise OvsegError(
            f"TEST.TASKS has {TASK}, but {FILE} is empty: name a table of images and labels, or set TEST.TASKS to [seg]"
        )
    return LabelledImages(own.FILE, own.ROOT, cfg.INPUT.IMG_AUG.IMG_SIZE, cfg.INPUT.IMG_AUG.EXIF)


def _stack(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
