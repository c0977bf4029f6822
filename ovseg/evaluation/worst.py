"""The images with the lowest pixel accuracy, collected during an evaluation for its report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.utils import comm
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.evaluation.arrays import read_arrays
from ovseg.evaluation.predictions import narrow
from ovseg.evaluation.sem_seg import SeenImage
from ovseg.evaluation.tally import State, add_other_processes
from ovseg.io.files import atomic_path
from ovseg.io.images import open_image

FILE = "worst_images.npz"
COUNT = 12


@dataclass(frozen=True, order=True)
class WorstImage:
    """An image with low pixel accuracy; instances are ordered from worst to best.

    Attributes:
        accuracy: share of correct pixels among those that are not ignored, in [0,1].
        index: position in the data set, which breaks ties.
        file_name, label_file: files of the image and its ground-truth labels.
        png: the predicted classes as a PNG file of 8 or 16 bit.
    """

    accuracy: float
    index: int
    file_name: str
    label_file: str
    png: bytes

    def label_map(self) -> np.ndarray:
        """Decode the predicted classes, (H,W) integers.

        Raises:
            OvsegError: the PNG is damaged.
        """
        try:
            with open_image(io.BytesIO(self.png)) as image:
                label_map = np.array(image)
        except Exception as error:  # Pillow raises many kinds on damaged files
            raise OvsegError(f"the prediction that {FILE} holds is damaged ({error}): evaluate again") from error
        if label_map.ndim != 2 or label_map.dtype.kind != "u":
            raise OvsegError(f"the prediction that {FILE} holds is not a map of classes: evaluate again")
        return label_map


class WorstImages:
    """Keeper of at most ``count`` images with the lowest pixel accuracy; only their compressed maps are in memory.

    Images whose pixels are all ignored are skipped.

    Args:
        path: file that is written at the end, see :func:`read_worst`.
        num_classes: K.
    """

    def __init__(self, path: str | Path, num_classes: int, count: int = COUNT) -> None:
        self._path, self._num_classes, self._count = Path(path), num_classes, count
        self._kept: list[WorstImage] = []

    def see(self, seen: SeenImage) -> None:
        """Keep the image if it is one of the worst so far."""
        right, counted = seen.runs.right_and_counted(self._num_classes)
        if not counted:
            return
        accuracy = right / counted
        if len(self._kept) < self._count or (accuracy, seen.index) < (self._kept[-1].accuracy, self._kept[-1].index):
            file = io.BytesIO()
            Image.fromarray(narrow(seen.label_map, self._num_classes)).save(file, "PNG")
            self._keep([WorstImage(accuracy, seen.index, seen.file_name, seen.label_file, file.getvalue())])

    def state(self) -> State:
        """See :class:`ovseg.evaluation.tally.Tally`."""
        return {
            "accuracy": np.array([image.accuracy for image in self._kept], dtype=np.float64),
            "index": np.array([image.index for image in self._kept], dtype=np.int64),
            "files": np.array([(image.file_name, image.label_file) for image in self._kept], dtype=str).reshape(-1, 2),
            "bytes": np.array([len(image.png) for image in self._kept], dtype=np.int64),
            "png": np.frombuffer(b"".join(image.png for image in self._kept), dtype=np.uint8),
        }

    def add(self, state: State) -> None:
        """See :class:`ovseg.evaluation.tally.Tally`."""
        self._keep(images_of(state))

    def check(self, state: State, images: Sequence[int]) -> None:
        """See :class:`ovseg.evaluation.tally.Tally`."""
        if not {image.index for image in images_of(state)} <= set(images):
            raise ValueError("keeps images that it has not counted")

    def finish(self) -> None:
        """Merge all processes and write the file on the main process; call it in every process."""
        add_other_processes(self)
        if comm.is_main_process():
            with atomic_path(self._path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **self.state())

    def close(self) -> None:
        """Do nothing; no file is open."""

    def _keep(self, more: list[WorstImage]) -> None:
        self._kept = sorted([*self._kept, *more])[: self._count]


def read_worst(path: Path) -> list[WorstImage] | None:
    """Read the file of :meth:`WorstImages.finish`, worst image first; None if there is no such file.

    Raises:
        OvsegError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return images_of(read_arrays(path))
    except (ValueError, KeyError) as error:
        raise OvsegError(f"{path} cannot be read ({error}): evaluate again with TEST.REPORT True") from error


def images_of(state: State) -> list[WorstImage]:
    """Return the images in a state of :class:`WorstImages`; raise ValueError or KeyError if it is invalid."""
    kinds = {"accuracy": "f", "index": "i", "files": "U", "bytes": "i", "png": "u"}
    if wrong := [key for key, kind in kinds.items() if state[key].dtype.kind != kind]:
        raise ValueError(f"{wrong[0]} has the type {state[wrong[0]].dtype}")
    number = len(state["accuracy"])
    shapes = {"accuracy": (number,), "index": (number,), "bytes": (number,), "files": (number, 2)}
    if any(state[key].shape != shape for key, shape in shapes.items()) or state["png"].shape != (state["bytes"].sum(),):
        raise ValueError("its arrays do not fit together")
    if not ((state["accuracy"] >= 0) & (state["accuracy"] <= 1)).all() or (state["bytes"] < 0).any():
        raise ValueError("it holds accuracies outside [0, 1] or negative sizes")
    ends = np.cumsum(state["bytes"])
    pngs = [state["png"][start:end].tobytes() for start, end in zip(ends - state["bytes"], ends, strict=True)]
    rows = zip(state["accuracy"].tolist(), state["index"].tolist(), state["files"].tolist(), pngs, strict=True)
    return [WorstImage(accuracy, index, *files, png) for accuracy, index, files, png in rows]
