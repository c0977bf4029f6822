"""Predicted label maps kept during an evaluation: all, as COCO run-length encodings or PNG, or the worst images."""

from __future__ import annotations

import contextlib
import heapq
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as coco_mask

from ovseg.errors import OvsegError
from ovseg.evaluation.sem_seg import Keeper, SeenImage
from ovseg.evaluation.tally import State, add_other_processes, read_arrays
from ovseg.io.files import atomic_path
from ovseg.io.images import open_image

RLE_FILE, PNG_FOLDER = "sem_seg_predictions.json", "predictions"
WORST_FILE, WORST_COUNT = "worst_images.npz", 12


class RlePredictions(Keeper):
    """Keeper that writes predictions as COCO-Stuff results, one record for each label in an image.

    Each process streams its records to a file; at the end, these are merged in the order of the images. As a tally, its
    state is the valid length of the stream: the part that belongs to counted images. All processes must share the file
    system of the output folder.

    Args:
        path: JSON file that is written at the end, a list of ``{"file_name", "category_id", "segmentation": {"size":
            [H,W], "counts": str}}``.
        stream: file of this process, in an existing folder; the caller removes it.
        dataset_ids: category id by class index; classes without an entry keep their index.
    """

    def __init__(self, path: str | Path, stream: str | Path, dataset_ids: Mapping[int, int]) -> None:
        self.path, self._stream = Path(path), Path(stream)
        self._dataset_ids = dataset_ids
        self._file = open(self._stream, "w", encoding="ascii", newline="\n")  # noqa: SIM115 - closed by close() or finish()
        self._earlier: list[tuple[Path, int]] = []

    def see(self, seen: SeenImage) -> None:
        """Append one line: the image's index and its records."""
        records = []
        for label in np.unique(seen.label_map).tolist():
            rle = coco_mask.encode(np.asfortranarray(seen.label_map == label, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode("ascii")
            category = self._dataset_ids.get(label, label)
            records.append({"file_name": seen.file_name, "category_id": category, "segmentation": rle})
        self._file.write(f"{seen.index}\t{json.dumps(records)}\n")

    def state(self) -> State:
        """Flush the stream and return its name and length."""
        self._file.flush()
        return {"stream": np.array(self._stream.name), "bytes": np.array(self._file.tell())}

    def add(self, state: State) -> None:
        """Add the stream of an earlier run, which is in the same folder."""
        self._earlier.append((self._stream.with_name(str(state["stream"])), int(state["bytes"])))

    def check(self, state: State, images: Sequence[int]) -> None:
        """Read the stream to its end and compare its images; see :meth:`ovseg.evaluation.tally.Tally.check`."""
        with open(self._stream.with_name(str(state["stream"])), encoding="ascii") as stream:
            lines = [(number, json.loads(text)) for number, text in _numbered_lines(stream, int(state["bytes"]))]
        if [number for number, _ in lines] != list(images) or not all(isinstance(found, list) for _, found in lines):
            raise ValueError(f"{state['stream']} does not hold the predictions of its images")

    def finish(self) -> None:
        """Write the JSON file on the main process; call it in every process.

        Raises:
            OvsegError: the stream of another process or of an earlier run is missing.
        """
        length = self._file.tell()
        self.close()
        own = comm.gather((self._stream, length), dst=0)
        if comm.is_main_process():
            streams = [*self._earlier, *own]
            if missing := [stream for stream, _ in streams if not stream.is_file()]:
                raise OvsegError(
                    f"predictions of another process are not in {missing[0].parent}: OUTPUT_DIR must be a folder that "
                    "all machines share, or set TEST.SAVE_PREDICTIONS to False"
                )
            with atomic_path(self.path) as temporary, contextlib.ExitStack() as stack:
                opened = [(stack.enter_context(open(stream, encoding="ascii")), size) for stream, size in streams]
                joined = stack.enter_context(open(temporary, "w", encoding="utf-8"))
                separator = "[\n"
                for _, records in heapq.merge(*(_numbered_lines(*item) for item in opened)):
                    for record in json.loads(records):
                        joined.write(separator + json.dumps(record))
                        separator = ",\n"
                joined.write("[]\n" if separator == "[\n" else "\n]\n")
        comm.synchronize()

    def close(self) -> None:
        """Close the stream; may be called at any time and repeatedly."""
        self._file.close()


def narrow(label_map: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a map of class indices as uint8, or as uint16 for more than 256 classes."""
    return label_map.astype(np.uint8 if num_classes <= 256 else np.uint16)


def distinct_stems(file_names: Sequence[str]) -> list[str]:
    """Return names for the results of images: relative paths without suffix, or with it where two would be equal."""
    absolute = [os.path.abspath(name) for name in file_names]
    common = os.path.commonpath([os.path.dirname(name) for name in absolute])
    relative = [os.path.relpath(name, common) for name in absolute]
    stems = [os.path.splitext(name)[0] for name in relative]
    return stems if len(set(stems)) == len(stems) else relative


class PngPredictions(Keeper):
    """Keeper that saves each label map as ``<folder>/<image>.png``: class indices, 8 bit up to 256 classes, else 16.

    Its state is empty: each file is complete as soon as it is written.

    Args:
        folder: output folder, created with the first file.
        file_names: names of all images; images of several folders keep the part of their path in which they differ.
        num_classes: K.
    """

    def __init__(self, folder: str | Path, file_names: Sequence[str], num_classes: int) -> None:
        self._folder = Path(folder)
        self._names = [f"{stem}.png" for stem in distinct_stems(file_names)]
        self._num_classes = num_classes

    def see(self, seen: SeenImage) -> None:
        """Write the image's file."""
        with atomic_path(self._folder / self._names[seen.index]) as temporary:
            Image.fromarray(narrow(seen.label_map, self._num_classes)).save(temporary)

    def check(self, state: State, images: Sequence[int]) -> None:
        if missing := [self._names[index] for index in images if not (self._folder / self._names[index]).is_file()]:
            raise ValueError(f"the prediction {missing[0]} is gone")


def _numbered_lines(file: TextIO, size: int) -> Iterator[tuple[int, str]]:
    """Yield (image, records) of the first ``size`` bytes of an ASCII stream; images are in ascending order."""
    while size > 0 and (line := file.readline()):
        size -= len(line)
        number, _, records = line.partition("\t")
        yield int(number), records


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
            raise OvsegError(f"the prediction that {WORST_FILE} holds is damaged ({error}): evaluate again") from error
        if label_map.ndim != 2 or label_map.dtype.kind != "u":
            raise OvsegError(f"the prediction that {WORST_FILE} holds is not a map of classes: evaluate again")
        return label_map


class WorstImages(Keeper):
    """Keeper of at most ``count`` images with the lowest pixel accuracy; only their compressed maps are in memory.

    Images whose pixels are all ignored are skipped.

    Args:
        path: file that is written at the end, see :func:`read_worst`.
        num_classes: K.
    """

    def __init__(self, path: str | Path, num_classes: int, count: int = WORST_COUNT) -> None:
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
        return {
            "accuracy": np.array([image.accuracy for image in self._kept], dtype=np.float64),
            "index": np.array([image.index for image in self._kept], dtype=np.int64),
            "files": np.array([(image.file_name, image.label_file) for image in self._kept], dtype=str).reshape(-1, 2),
            "bytes": np.array([len(image.png) for image in self._kept], dtype=np.int64),
            "png": np.frombuffer(b"".join(image.png for image in self._kept), dtype=np.uint8),
        }

    def add(self, state: State) -> None:
        self._keep(images_of(state))

    def check(self, state: State, images: Sequence[int]) -> None:
        if not {image.index for image in images_of(state)} <= set(images):
            raise ValueError("keeps images that it has not counted")

    def finish(self) -> None:
        """Merge all processes and write the file on the main process; call it in every process."""
        add_other_processes(self)
        if comm.is_main_process():
            with atomic_path(self._path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **self.state())

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
