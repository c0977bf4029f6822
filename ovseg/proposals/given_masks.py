"""Proposers without a network: ground truth, and masks from files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import expand_user
from ovseg.io.images import read_labels
from ovseg.io.run_lengths import decode_mask
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views

MAP_SUFFIXES = (".png", ".tif", ".tiff")
KEY = "MODEL.PROPOSER.MASKS"


class GivenMasks(Part):
    """Base class of proposers without a network; child classes implement :meth:`masks_of`."""

    gives_embeddings: ClassVar[bool] = False

    def forward(self, views: Views) -> list[Masks]:
        """Return the masks, 0 and 1, in the size of the images, without class embeddings."""
        found = []
        for request, image in zip(views.requests, views.images, strict=True):
            masks = torch.as_tensor(self.masks_of(request)).to(image.device).bool()
            _check_ratio(masks.shape[-2:], image.shape[-2:], request.get("file_name", "an image"))
            found.append(Masks(resize_masks(masks, tuple(image.shape[-2:])).float(), given=masks))
        return found

    def masks_of(self, request: Mapping[str, Any]) -> Tensor | np.ndarray:
        """Return the masks of one image, bool (n, H, W), of any size with its aspect ratio."""
        raise NotImplementedError


@PROPOSERS.register()
class GroundTruth(GivenMasks):
    """Proposer of the true masks of a request: ``gt_masks`` of its ``instances``, or one per class of its label map.

    The label map is ``sem_seg`` (H, W), or the file ``sem_seg_file_name``.

    Args:
        ignore_label: value of pixels without a class.
    """

    @configurable
    def __init__(self, ignore_label: int = 255):
        super().__init__()
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}

    def masks_of(self, request: Mapping[str, Any]) -> Tensor | np.ndarray:
        if "instances" in request:
            masks = request["instances"].gt_masks
            return getattr(masks, "tensor", masks)
        if "sem_seg" not in request and "sem_seg_file_name" not in request:
            raise OvsegError(
                "the proposer GroundTruth needs labels: give sem_seg, sem_seg_file_name or instances in each request"
            )
        labels = request["sem_seg"] if "sem_seg" in request else read_labels(request["sem_seg_file_name"])
        return masks_of_map(np.asarray(labels), self.ignore_label)


class TrueMasks(GroundTruth):
    """Proposer of true masks in evaluation, in the place of a network that remains part of the model.

    The network trains, and has its weights in checkpoints, as it does without.

    Args:
        network: the proposer that it replaces.
        ignore_label: value of pixels without a class.
    """

    def __init__(self, network: Part, ignore_label: int = 255):
        super().__init__(ignore_label=ignore_label)
        self.network = network

    def __getattr__(self, name: str) -> Any:
        """Return what this class lacks from the network, such as its losses and the size of its canvas."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


@PROPOSERS.register()
class MaskFiles(GivenMasks):
    """Proposer of masks from files, which another program has written.

    Args:
        path: a JSON file with COCO's run-length encoded masks: a list of records with ``segmentation`` and
            ``file_name`` or ``image_id``, or a mapping with ``annotations`` and ``images``. Of records whose files have
            the stem of the image, those are taken that have most folders and the suffix in common with it. Or a folder
            with a file for each image, of the same stem: a label map (PNG or TIFF; each value except ``ignore_label``
            is a mask), or a JSON file as above.
        ignore_label: value of pixels without a mask in label maps.

    Raises:
        OvsegError: the path is missing or of another kind; when called, an image without ``file_name`` or without
            masks, or damaged masks.
    """

    @configurable
    def __init__(self, path: str | Path, ignore_label: int = 255):
        super().__init__()
        self.path, self.ignore_label = expand_user(path), ignore_label
        if not str(path) or not self.path.exists():
            raise OvsegError(
                f"{KEY} is {str(path)!r}: give a JSON file of COCO run-length codes, or a folder of label maps"
            )
        self.by_image = None if self.path.is_dir() else _read_records(self.path)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"path": cfg.MODEL.PROPOSER.MASKS, "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}

    def masks_of(self, request: Mapping[str, Any]) -> Tensor | np.ndarray:
        name = str(request.get("file_name") or "")
        if not name:
            raise OvsegError("the proposer MaskFiles needs file_name in each request, to find the masks of the image")
        if self.by_image is not None:
            return self._decoded(self.by_image, Path(name), request, self.path)
        for suffix in MAP_SUFFIXES:
            if (path := self.path / f"{Path(name).stem}{suffix}").is_file():
                return masks_of_map(read_labels(str(path)), self.ignore_label)
        if (path := self.path / f"{Path(name).stem}.json").is_file():
            records = _read_records(path, Path(name).name)
            return self._decoded(records, Path(name), request, path)
        raise OvsegError(
            f"{self.path} has no {Path(name).stem}.png, .tif or .json: give a file with the masks of {name}"
        )

    def _decoded(
        self, records: Mapping[Any, dict[str, list]], name: Path, request: Mapping[str, Any], path: Path
    ) -> Tensor | np.ndarray:
        masks = [_decode(record, path) for record in _records_of(records, name, request.get("image_id"), path)]
        if len({mask.shape for mask in masks}) > 1:
            raise OvsegError(f"{path} has masks of several sizes for {name}: write all masks of an image in one size")
        return np.stack(masks) if masks else np.zeros((0, *request["image"].shape[-2:]), bool)


def masks_of_map(labels: np.ndarray, ignore_label: int) -> np.ndarray:
    """Return one mask for each value of a label map (H, W) except ``ignore_label``, ascending; bool (n, H, W)."""
    values = np.unique(labels)
    return labels[None] == values[values != ignore_label][:, None, None]


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks by nearest neighbour; a mask that would have no pixel left gets every pixel that it overlaps.

    Args:
        masks: bool (n, H, W), each with a pixel.
        size: of the result.
    """
    if masks.shape[-2:] == size or not len(masks):
        return masks if len(masks) else masks.new_zeros(0, *size)
    resized = F.interpolate(masks[None].float(), size, mode="nearest-exact")[0] > 0
    lost = ~resized.flatten(1).any(1)
    if lost.any():
        resized[lost] = F.adaptive_max_pool2d(masks[lost].float(), size) > 0
    return resized


def _check_ratio(of_masks: Sequence[int], of_image: Sequence[int], name: str) -> None:
    ratio = of_masks[0] * of_image[1] / (of_masks[1] * of_image[0])
    if abs(ratio - 1) > 0.02 + 1 / min(*of_masks, *of_image):
        raise OvsegError(
            f"the masks of {name} have {of_masks[1]}x{of_masks[0]} pixels, which do not fit its image: they must have "
            "the image's aspect ratio"
        )


def _read_records(path: Path, of_one: str | None = None) -> dict[Any, dict[str, list]]:
    """Return the records of masks by the stem of their image's file, and then by its name; by number by (None, number).

    Args:
        of_one: name of the image of records that name none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise OvsegError(f"{path} cannot be read as JSON ({reason_of(error)}): give COCO's run-length codes") from error
    images = (content.get("images") or []) if isinstance(content, dict) else []
    records = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in (*records, *images)):
        raise OvsegError(
            f"{path} is not a list of masks: give COCO's annotations or results, records with a segmentation"
        )
    names = {str(image.get("id")): image.get("file_name") for image in images}
    by_stem: dict[Any, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for name in filter(None, names.values()):
        _ = by_stem[_stem(str(name))][str(name)]  # an image may have no masks
    for record in records:
        if not isinstance(record.get("segmentation"), dict):  # polygons, segments of a panoptic map, a box alone
            raise OvsegError(
                f"{path} has a mask that is not a run-length code: give segmentation as {{size, counts}}, "
                "or a folder of label maps"
            )
        number = str(record.get("image_id"))
        if name := record.get("file_name") or names.get(number) or of_one:
            by_stem[_stem(str(name))][str(name)].append(record)
        else:
            by_stem[None, number][number].append(record)
    return dict(by_stem)


def _records_of(records: Mapping[Any, dict[str, list]], name: Path, number: Any, path: Path) -> list[dict[str, Any]]:
    """Return the records whose file has most folders and the suffix in common with an image, or those of its number."""
    found = records.get(name.stem) or records.get((None, str(number)))
    if not found:
        raise OvsegError(f"{path} holds no masks of {name}: its records name other images")
    ranks = {other: _common(name, Path(other)) for other in found}
    best = [other for other, rank in ranks.items() if rank == max(ranks.values())]
    if len(best) > 1:
        raise OvsegError(
            f"{path} has masks of {' and of '.join(best[:2])}, and {name} may be either: name images with their folders"
        )
    return found[best[0]]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0] or Path(name).stem  # Path takes most of the time of large files


def _common(first: Path, second: Path) -> tuple[int, bool]:
    """Return how many of the innermost folders are the same, and whether the suffixes are."""
    folders = zip(reversed(first.parts[:-1]), reversed(second.parts[:-1]), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], folders)), first.suffix == second.suffix


def _decode(record: Mapping[str, Any], path: Path) -> np.ndarray:
    code = record["segmentation"]
    try:
        height, width = (int(side) for side in code["size"])
        if min(height, width) < 1:
            raise ValueError(f"its size is {height} x {width}")
        return decode_mask(code["counts"], height, width)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise OvsegError(f"{path} has a damaged mask ({reason_of(error)}): write it again") from error
