"""Label maps kept while an evaluation runs: all of them, or those of the images that went worst."""

from __future__ import annotations

import contextlib
import heapq
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as coco_mask

from ovseg.errors import OvsegError
from ovseg.evaluation.sem_seg import SeenImage
from ovseg.evaluation.tally import State, add_other_processes, read_arrays
from ovseg.io.files import atomic_path
from ovseg.io.images import open_image

RLE_FILE, PNG_FOLDER = "sem_seg_predictions.json", "predictions"
WORST_FILE, WORST_COUNT = "worst_images.npz", 12
_FORMATS = {None: None, False: None, True: "rle", "rle": "rle", "png": "png"}


def prediction_format(value: Any) -> str | None:
    """What ``TEST.SAVE_PREDICTIONS`` asks for: "rle" (also True), "png", or None.

    Raises:
        OvsegError: another value.
    """
    if not isinstance(value, bool | str | None) or value not in _FORMATS:
        raise OvsegError(f"TEST.SAVE_PREDICTIONS is {value!r}: use False, True (rle), rle or png")
    return _FORMATS[value]


def encode_label_map(label_map: np.ndarray, file_name: str, dataset_ids: Mapping[int, int]) -> list[dict]:
    """COCO-Stuff result records of one image, one per label present.

    Args:
        label_map: (H,W) integers.
        file_name: name of the image, copied into the records.
        dataset_ids: category id by class index; classes that are not in it keep their index.

    Returns:
        ``[{"file_name", "category_id", "segmentation": {"size": [H,W], "counts": str}}, ...]``.
    """
    records = []
    for label in np.unique(label_map).tolist():
        rle = coco_mask.encode(np.asfortranarray(label_map == label, dtype=np.uint8))
        rle["counts"] = rle["counts"].decode("ascii")
        records.append(
            {"file_name": file_name, "category_id": dataset_ids.get(label, label), "segmentation": rle},
        )
    return records


class RlePredictions:
    """Streams records to a file of this process, and joins those of all processes, in the order of the images.

    A tally, too: its state tells how much of the stream belongs to counted images. The streams of all processes must
    be in one file system (the output folder of a distributed run is).

    Args:
        path: the JSON file that is written at the end, a list of :func:`encode_label_map`'s records.
        stream: this process's own file, in a folder that is there and that others clear.
        dataset_ids: category id by class index.
    """

    def __init__(self, path: str | Path, stream: str | Path, dataset_ids: Mapping[int, int]) -> None:
        self.path, self._stream = Path(path), Path(stream)
        self._dataset_ids = dataset_ids
        self._file = open(self._stream, "w", encoding="ascii", newline="\n")  # noqa: SIM115 - closed by close() or finish()
        self._earlier: list[tuple[Path, int]] = []

    def see(self, seen: SeenImage) -> None:
        """Append the image's records on one line, after its number."""
        records = encode_label_map(seen.label_map, seen.file_name, self._dataset_ids)
        self._file.write(f"{seen.index}\t{json.dumps(records)}\n")

    def state(self) -> State:
        """Name and valid length of the stream, brought out of this process before that."""
        self._file.flush()
        return {"stream": np.array(self._stream.name), "bytes": np.array(self._file.tell())}

    def add(self, state: State) -> None:
        """Take over the stream of an earlier run, in the same folder."""
        self._earlier.append((self._stream.with_name(str(state["stream"])), int(state["bytes"])))

    def check(self, state: State, images: Sequence[int]) -> None:
        """See :class:`ovseg.evaluation.tally.Tally`; reads the stream to its end."""
        with open(self._stream.with_name(str(state["stream"])), encoding="ascii") as stream:
            lines = [(number, json.loads(text)) for number, text in _numbered_lines(stream, int(state["bytes"]))]
        if [number for number, _ in lines] != list(images) or not all(isinstance(found, list) for _, found in lines):
            raise ValueError(f"{state['stream']} does not hold the predictions of its images")

    def finish(self) -> None:
        """Write the JSON file on the main process; call it in every process.

        Raises:
            OvsegError: the stream of another process, or of an earlier run, is not there.
        """
        length = self._file.tell()
        self._file.close()
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
        self.close()

    def close(self) -> None:
        """Let go of the stream; safe to call at any time, twice too."""
        self._file.close()


def narrow(label_map: np.ndarray, num_classes: int) -> np.ndarray:
    """A map of class indices as uint8, or as uint16 where there are more than 256 classes."""
    return label_map.astype(np.uint8 if num_classes <= 256 else np.uint16)


class PngPredictions:
    """Saves each label map as ``<folder>/<image>.png``: class indices, 8 bit up to 256 classes, else 16 bit.

    Args:
        folder: made when the first is written.
        file_names: of all images; images of several folders keep the part of their path in which they differ.
        num_classes: K.
    """

    def __init__(self, folder: str | Path, file_names: Sequence[str], num_classes: int) -> None:
        self._folder = Path(folder)
        self._names = _distinct_names(file_names)
        self._num_classes = num_classes

    def see(self, seen: SeenImage) -> None:
        """Write the image's file."""
        with atomic_path(self._folder / self._names[seen.index]) as temporary:
            Image.fromarray(narrow(seen.label_map, self._num_classes)).save(temporary)

    def state(self) -> State:
        """Nothing: the files are where they belong."""
        return {}

    def add(self, state: State) -> None:
        """See :meth:`state`."""

    def check(self, state: State, images: Sequence[int]) -> None:
        """See :class:`ovseg.evaluation.tally.Tally`."""
        if missing := [self._names[index] for index in images if not (self._folder / self._names[index]).is_file()]:
            raise ValueError(f"the prediction {missing[0]} is gone")

    def finish(self) -> None:
        """See :meth:`state`."""

    def close(self) -> None:
        """See :meth:`state`."""


def _distinct_names(file_names: Sequence[str]) -> list[str]:
    """Relative PNG names, without the images' suffix where none are alike without it."""
    absolute = [os.path.abspath(name) for name in file_names]
    folder = os.path.commonpath([os.path.dirname(name) for name in absolute])
    relative = [os.path.relpath(name, folder) for name in absolute]
    stems = [os.path.splitext(name)[0] for name in relative]
    return [f"{name}.png" for name in (stems if len(set(stems)) == len(stems) else relative)]


def _numbered_lines(file: TextIO, size: int) -> Iterator[tuple[int, str]]:
    """(image, records) of the first ``size`` bytes, which are ASCII; images come in ascending order."""
    while size > 0 and (line := file.readline()):
        size -= len(line)
        number, _, records = line.partition("\t")
        yield int(number), records


@dataclass(frozen=True, order=True)
class WorstImage:
    """One of them; ordered from worst to best.

    Attributes:
        accuracy: share of the pixels that count which have their true class, in [0,1].
        index: its place in the data set, which decides between equals.
        file_name, label_file: of the image and its true labels.
        png: the predicted classes as a PNG file of 8 or 16 bit.
    """

    accuracy: float
    index: int
    file_name: str
    label_file: str
    png: bytes

    def label_map(self) -> np.ndarray:
        """(H,W) integers, the predicted classes.

        Raises:
            OvsegError: the picture is damaged.
        """
        try:
            with open_image(io.BytesIO(self.png)) as image:
                label_map = np.array(image)
        except Exception as error:  # Pillow raises many kinds on damaged files
            raise OvsegError(f"the prediction that {WORST_FILE} holds is damaged ({error}): evaluate again") from error
        if label_map.ndim != 2 or label_map.dtype.kind != "u":
            raise OvsegError(f"the prediction that {WORST_FILE} holds is not a map of classes: evaluate again")
        return label_map


class WorstImages:
    """A tally of at most ``count`` images with the lowest pixel accuracy; memory holds their compressed maps alone.

    Images without a pixel that counts are passed over.

    Args:
        path: the file that is written at the end, see :func:`read_worst`.
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
        """Write the worst that any process has seen; call it in every process."""
        add_other_processes(self)
        if comm.is_main_process():
            with atomic_path(self._path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **self.state())

    def close(self) -> None:
        """Nothing is open."""

    def _keep(self, more: list[WorstImage]) -> None:
        self._kept = sorted([*self._kept, *more])[: self._count]


def read_worst(path: Path) -> list[WorstImage] | None:
    """What :meth:`WorstImages.finish` wrote, from the worst on; None if there is no such file.

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
    """Return the images in a state of :class:`WorstImages`; ValueError or KeyError if it cannot be one."""
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
