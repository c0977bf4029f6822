"""Loader of image-text pairs for the training of OVSegmentor: rows that cannot be used are skipped and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch.utils.data import Dataset

from ovseg.data.catalog import check_prepared
from ovseg.data.image_text_mapper import ImageTextMapper, Tokenize, configured_finder
from ovseg.data.image_text_rows import RecordRows, Rows
from ovseg.data.image_text_shards import ShardRows
from ovseg.data.image_text_table import TableRows
from ovseg.data.sample_loader import SampleLoader
from ovseg.data.sampler import StreamBatchSampler, mix, seeded
from ovseg.errors import OvsegError
from ovseg.io.files import is_dir
from ovseg.vocabulary.wordpiece import load_tokenizer

logger = logging.getLogger(__name__)

TRIES = 32  # rows in succession, none of which can be used, after which training stops
LISTED = 20  # rows that the log names


class ImageTextDataset(Dataset):
    """Rows through a mapper, by (position in the stream, row); draws depend on the seed and the position alone.

    In place of a row that cannot be used, another one is drawn. The sample lists the errors under ``unusable``.

    Args:
        rows: image-text pairs.
        mapper: called with the rows and a row's number.
        seed: of all draws.
    """

    def __init__(self, rows: Rows, mapper: Callable[[Rows, int], dict[str, Any]], seed: int):
        self.rows, self.mapper, self.seed = rows, mapper, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | OvsegError:
        position, row = key
        unusable: list[str] = []
        with seeded(mix(self.seed, position)), torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, position, 1))
            for _ in range(TRIES):
                try:
                    return self.mapper(self.rows, row) | {"unusable": unusable}
                except OvsegError as error:
                    unusable.append(str(error))
                    row = np.random.randint(len(self.rows))
        return OvsegError(
            f"none of {TRIES} rows of the image-text pairs can be used; the first one: {unusable[0]}: check "
            "DATASETS.IMAGE_TEXT.ROOT and FILE"
        )


class ImageTextLoader(SampleLoader):
    """Batches of samples, lists of dicts; the log counts the rows that could not be used, and names the first ones.

    Args:
        dataset: image-text pairs.
        batch_sampler: lists of (position, row).
        num_workers: processes.

    Attributes:
        skipped: number of draws of rows that could not be used, so far, in this process's share.
    """

    def __init__(self, dataset: ImageTextDataset, batch_sampler: Iterable[Sequence[Any]], num_workers: int):
        super().__init__(dataset, batch_sampler, num_workers, collate=_stack)
        self.skipped = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for unusable, batch in super().__iter__():
            for error in unusable:
                self.skipped += 1
                if self.skipped <= LISTED:
                    logger.warning("skipped a row of the image-text pairs: %s", error)
                elif self.skipped % 1000 == 0 or self.skipped == LISTED + 1:
                    logger.warning("skipped %d rows of the image-text pairs so far, in this process", self.skipped)
            yield _split(batch)


def image_text_loader(cfg: CfgNode, *, seed: int, start: int = 0, tokenize: Tokenize | None = None) -> ImageTextLoader:
    """Return endless batches of this process's share of ``SOLVER.IMS_PER_BATCH`` image-text pairs.

    Sample ``i`` of the run is the same whatever the number of workers and processes and however often the run was
    resumed. Each epoch is a new permutation of the rows, without those at its end that fill no batch: a row that a
    contrastive batch held twice would be its own negative. The original repeats the same permutation.

    Args:
        cfg: the configuration.
        seed: of order and augmentation.
        start: number of samples used so far.
        tokenize: see :class:`ImageTextMapper`; default: the tokenizer of ``MODEL.OVSEGMENTOR.TEXT_ENCODER``.

    Raises:
        OvsegError: a table that cannot be used, a data set that is not prepared, fewer rows than in a batch, or an
            option that cannot work.
    """
    batch_size, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch_size < 1 or batch_size % world_size:
        raise OvsegError(
            f"SOLVER.IMS_PER_BATCH = {batch_size} cannot be shared by {world_size} processes: choose a multiple of it"
        )
    if cfg.DATASETS.TRAIN_WEIGHTS:
        raise OvsegError("DATASETS.TRAIN_WEIGHTS has no effect on image-text pairs: set it to ()")
    rows, text = image_text_rows(cfg), cfg.MODEL.OVSEGMENTOR.TEXT_ENCODER
    if len(rows) < batch_size:
        raise OvsegError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}, but there are {len(rows)} image-text pairs: lower it, since a pair "
            "that is twice in a batch would be its own negative"
        )
    tokenize = tokenize or load_tokenizer(text.CONFIG, text.VOCAB)
    stream = {"start": start, "rank": comm.get_rank(), "world_size": world_size}
    sampler = StreamBatchSampler(len(rows), batch_size, seed, **stream, drop_last=True)
    dataset = ImageTextDataset(rows, ImageTextMapper(cfg, tokenize), seed)
    return ImageTextLoader(dataset, sampler, cfg.DATALOADER.NUM_WORKERS)


def image_text_rows(cfg: CfgNode) -> Rows:
    """Return the rows of ``DATASETS.IMAGE_TEXT.FILE``, or those of the captioned data sets of ``DATASETS.TRAIN``.

    Raises:
        OvsegError: neither is given; a file that cannot be used; or a data set that is not prepared.
    """
    paired, finder, own = cfg.MODEL.OVSEGMENTOR.USE_MASKLOSS, configured_finder(cfg), cfg.DATASETS.IMAGE_TEXT
    if own.FILE:
        if cfg.DATASETS.TRAIN:
            logger.warning("DATASETS.TRAIN is not trained on, since DATASETS.IMAGE_TEXT.FILE is given")
        in_shards = own.FILE.endswith(".tar") or is_dir(own.FILE)
        rows = ShardRows(own.FILE, finder, paired) if in_shards else TableRows(own.FILE, own.ROOT, paired)
        logger.info("image-text pairs: %d rows of %s", len(rows), own.FILE)
        return rows
    if not (names := cfg.DATASETS.TRAIN):
        raise OvsegError(
            "DATASETS.IMAGE_TEXT.FILE is empty: name a table of images and captions, or captioned data sets as "
            "DATASETS.TRAIN"
        )
    records = []
    for name in names:
        check_prepared(name)
        records += DatasetCatalog.get(name)
    rows = RecordRows(records, finder, paired, ", ".join(names))
    logger.info("image-text pairs: %d images of %s; %d are left out", len(rows), ", ".join(names), rows.left_out)
    return rows


def _stack(samples: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Join the tensors of samples: worker processes hand over one tensor of each kind, not one for each sample."""
    unusable = [error for sample in samples for error in sample.pop("unusable")]
    return unusable, _joined(samples)


def _joined(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _joined([sample[key] for sample in samples])
        if isinstance(value, dict)
        else torch.stack([sample[key] for sample in samples])
        for key, value in samples[0].items()
    }


def _split(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the samples that :func:`_joined` joined, views of its tensors."""
    parts = {key: _split(value) if isinstance(value, dict) else value.unbind() for key, value in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
