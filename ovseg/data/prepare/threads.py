"""Doing many small jobs with several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def spread(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Results of ``work`` on every job, in any order.

    Only a few jobs wait at a time, so memory does not grow with them. When the consumer stops early (after an error,
    Ctrl-C, or ``close()``), what has begun is finished and nothing else is begun.

    Args:
        work: done in a thread; what it raises is raised here.
        jobs: what to do.
        workers: number of threads; 0 or 1: the work is done right here.
    """
    if workers <= 1:
        yield from map(work, jobs)
        return
    pending: set[Future[Result]] = set()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                pending.add(pool.submit(work, job))
                if len(pending) >= 8 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(cancel_futures=True)
