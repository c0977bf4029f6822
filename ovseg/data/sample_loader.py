"""A ``DataLoader`` whose worker processes hand over the errors of users as such."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
from torch.utils.data import DataLoader, Dataset

from ovseg.errors import OvsegError
from ovseg.io.cpus import usable_cpus


class SampleLoader(DataLoader):
    """A ``DataLoader`` which raises the errors that a data set returns in place of samples, as ``MappedDataset`` does.

    There are at most as many worker processes as CPUs: published numbers of workers suit published machines.

    Args:
        dataset: its items are samples or an OvsegError.
        batch_sampler: lists of keys.
        num_workers: processes.
        collate: makes a batch of a list of samples; by default, it stays a list.
        options: further ones of ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_sampler: Iterable[Sequence[Any]],
        num_workers: int,
        collate: Callable[[list[Any]], Any] = list,
        **options: Any,
    ):
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=min(num_workers, usable_cpus()),
            collate_fn=partial(_first_error_or_batch, collate),
            worker_init_fn=_one_thread,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, OvsegError):
                raise batch
            yield batch


def _first_error_or_batch(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    return next((sample for sample in samples if isinstance(sample, OvsegError)), None) or collate(samples)


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)
