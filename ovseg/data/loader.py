"""Data loaders for training and evaluation.

Detectron2's own loaders are not used: the order of their samples depends on the number of workers and processes and
cannot be taken up in the middle, and in 0.6 the test loader has no batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList
from detectron2.utils import comm
from torch.utils.data import Dataset

from ovseg.data.caption_mapper import CaptionMapper
from ovseg.data.caption_records import captioned_records
from ovseg.data.catalog import check_prepared
from ovseg.data.image_text import image_text_loader
from ovseg.data.mapper import SemSegTestMapper, SemSegTrainMapper
from ovseg.data.sample_loader import SampleLoader
from ovseg.data.sampler import MixedBatchSampler, StreamBatchSampler, mix, seeded
from ovseg.errors import OvsegError

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class MappedDataset(Dataset):
    """Dataset dicts through a mapper; a user's error is returned, not raised.

    torch would turn an exception in a worker process into a traceback as the message; ``SampleLoader`` raises it.

    Args:
        records: dataset dicts.
        mapper: applied to each.
        seed: with a seed, keys are (position, index) and draws depend on ``(seed, position)`` alone; without,
            keys are indices.
    """

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Mapper, seed: int | None = None):
        self.records = DatasetFromList(list(records), copy=False)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any] | OvsegError:
        try:
            if self.seed is None:
                return self.mapper(self.records[key])
            position, index = key
            with seeded(mix(self.seed, position)):
                return self.mapper(self.records[index])
        except OvsegError as error:
            return error


def build_train_loader(cfg: CfgNode, *, seed: int, start: int = 0, mapper: Mapper | None = None) -> SampleLoader:
    """Return endless batches of this process's share of ``SOLVER.IMS_PER_BATCH`` samples of ``DATASETS.TRAIN``.

    Sample ``i`` of the run is the same whatever the number of workers and processes and however often the run was
    resumed. Images are not grouped by aspect ratio: training crops are padded to one size.

    ``DATASETS.TRAIN_WEIGHTS`` are the probabilities with which each sample is of each data set; without them, the data
    sets are one, in which every image counts the same.

    Args:
        seed: of order and augmentation.
        start: number of samples used so far.
        mapper: default :class:`SemSegTrainMapper`, for OpenSeg :class:`CaptionMapper`; not for OVSegmentor, which has
            image-text pairs, see :func:`ovseg.data.image_text.image_text_loader`.

    Raises:
        OvsegError: a data set is not prepared or empty, or an option cannot work; while iterating, unusable files.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise OvsegError(f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; only TrainingSampler is there")
    batch_size, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch_size < 1 or batch_size % world_size:
        raise OvsegError(
            f"SOLVER.IMS_PER_BATCH = {batch_size} cannot be shared by {world_size} processes: choose a multiple of it"
        )
    if mapper is None and cfg.MODEL.META_ARCHITECTURE == "OVSegmentor":
        return image_text_loader(cfg, seed=seed, start=start)
    sets = training_records(cfg)
    if mapper is None and cfg.MODEL.META_ARCHITECTURE == "OpenSeg":
        sets = captioned_records(cfg, sets)
        mapper = CaptionMapper(cfg, [record for records in sets for record in records])
    mapper = SemSegTrainMapper(cfg) if mapper is None else mapper
    records = [record for records in sets for record in records]
    stream = {"batch_size": batch_size, "seed": seed, "start": start, "rank": comm.get_rank(), "world_size": world_size}
    sampler: Iterable[Sequence[Any]] = StreamBatchSampler(len(records), **stream)
    if cfg.DATASETS.TRAIN_WEIGHTS:
        sampler = MixedBatchSampler([len(records) for records in sets], cfg.DATASETS.TRAIN_WEIGHTS, **stream)
    return SampleLoader(MappedDataset(records, mapper, seed), sampler, cfg.DATALOADER.NUM_WORKERS)


def build_test_loader(
    cfg: CfgNode, dataset_name: str, outputs: Sequence[str] = ("sem_seg",), limit: int | None = None
) -> SampleLoader:
    """Return this process's share of a data set; see :func:`test_dataset` and :func:`test_loader`."""
    return test_loader(cfg, test_dataset(cfg, dataset_name, outputs, limit))


def test_dataset(cfg: CfgNode, dataset_name: str, outputs: Sequence[str], limit: int | None = None) -> MappedDataset:
    """Return a registered data set with the mapper of evaluation.

    Args:
        outputs: of the model, passed on in every sample.
        limit: number of images, evenly spread over the data set; None for all.

    Raises:
        OvsegError: the data set is not prepared or empty; when a sample is taken, an unusable image.
    """
    records = _records(dataset_name)
    if limit is not None and limit < len(records):
        records = [records[index] for index in np.linspace(0, len(records) - 1, limit).round().astype(int)]
    return MappedDataset(records, SemSegTestMapper(cfg, dataset_name, outputs))


def test_loader(cfg: CfgNode, dataset: MappedDataset, done: Iterable[int] = ()) -> SampleLoader:
    """Return this process's share of the images not done yet, in order, in batches of ``SOLVER.TEST_IMS_PER_BATCH``.

    Images that share a batch are padded to one size, so which ones do never depends on the number of processes and on
    what is done: a batch is done when its first image is.
    """
    size, done = max(cfg.SOLVER.TEST_IMS_PER_BATCH, 1), frozenset(done)
    firsts = [first for first in range(0, len(dataset), size) if first not in done]
    share = np.array_split(np.array(firsts, dtype=np.int64), comm.get_world_size())[comm.get_rank()].tolist()
    batches = [list(range(first, min(first + size, len(dataset)))) for first in share]
    return SampleLoader(dataset, batches, cfg.DATALOADER.NUM_WORKERS)


def training_records(cfg: CfgNode) -> list[list[dict[str, Any]]]:
    """Return the dataset dicts of each data set of ``DATASETS.TRAIN``.

    Raises:
        OvsegError: a data set is not prepared or empty.
    """
    return [_records(name) for name in cfg.DATASETS.TRAIN]


def _records(dataset_name: str) -> list[dict[str, Any]]:
    check_prepared(dataset_name)
    records = DatasetCatalog.get(dataset_name)
    if not records:
        raise OvsegError(f"data set {dataset_name!r} is empty: check the folders it was registered with")
    return records
