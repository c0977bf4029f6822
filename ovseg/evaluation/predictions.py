"""Saving predicted label maps as COCO run-length codes, without holding them in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.utils import comm
from pycocotools import mask as coco_mask

from ovseg.errors import OvsegError
from ovseg.files import atomic_path


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


class PredictionWriter:
    """Streams records to one hidden file per process, joins them into one JSON list at the end.

    The files of all processes must be in one file system (the output folder of a distributed run is).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._part = self._part_of(comm.get_rank())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._part, "w", encoding="utf-8")  # noqa: SIM115 - closed by close() or finish()

    def write(self, records: list[dict]) -> None:
        """Append records, one JSON line each."""
        self._file.writelines(json.dumps(record) + "\n" for record in records)

    def finish(self) -> None:
        """Join the parts of all processes, in process order, on the main process; call it in every process."""
        self._file.close()
        comm.synchronize()
        if comm.is_main_process():
            with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as joined:
                separator = "[\n"
                for rank in range(comm.get_world_size()):
                    part = self._part_of(rank)
                    if not part.is_file():
                        raise OvsegError(
                            f"predictions of process {rank} are not in {part.parent}: OUTPUT_DIR must be a folder that "
                            "all machines share, or set TEST.SAVE_PREDICTIONS to False"
                        )
                    with open(part, encoding="utf-8") as lines:
                        for line in lines:
                            joined.write(separator + line.rstrip("\n"))
                            separator = ",\n"
                joined.write("[]\n" if separator == "[\n" else "\n]\n")
        comm.synchronize()
        self.close()

    def close(self) -> None:
        """Remove this process's part; safe to call at any time, twice too."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _part_of(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.stem}.process{rank}.jsonl")
