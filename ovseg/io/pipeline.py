"""Reading, computing and saving of many items at the same time, in their order, with limits of memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ovseg.errors import CannotWrite

Item = TypeVar("Item")

LARGEST_LOAD = 100_000_000  # pixels of images that are read, computed or saved at a time; a larger one is alone


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What became of an item.

    Attributes:
        item: the item.
        value: what ``save`` returned; None after an error.
        error: the exception of the step that failed; None for a success.
    """

    item: Item
    value: Any = None
    error: Exception | None = None


@dataclass
class Stages(Generic[Item]):
    """The three steps of a pipeline.

    ``read`` and ``save`` run in threads, ``compute`` in the thread that iterates. At most ``ahead`` items wait between
    two steps. Results are those of one step after the other, whatever the number of threads.

    Attributes:
        read: item -> input; in threads.
        compute: inputs of up to ``batch`` items -> as many results; an exception among them is the error of its item.
        save: item, result -> value of the outcome; in threads. Files must be written to names of their own.
        load: item -> memory that it takes, in pixels; called before ``read``.
        batch: items that are computed at a time.
        readers, savers: threads; 0 savers: everything in the calling thread, step after step.
        ahead: items that are read ahead, and that wait for being saved.
        most: limit of the sum of ``load`` of all items under way; an item above it is alone.
    """

    read: Callable[[Item], Any]
    compute: Callable[[Sequence[Any]], Sequence[Any]]
    save: Callable[[Item, Any], Any]
    load: Callable[[Item], int] = lambda item: 1
    batch: int = 1
    readers: int = 1
    savers: int = 2
    ahead: int = 4
    most: int = LARGEST_LOAD

    def run(self, items: Iterable[Item]) -> Generator[Outcome[Item], None, None]:
        """Yield the outcome of each item, in order.

        Exceptions of the steps are outcomes, but :class:`~ovseg.errors.CannotWrite` ends the run after those of earlier
        items. When the generator is closed or interrupted (Ctrl-C), steps that have begun end, and no other begins.

        Raises:
            CannotWrite: nothing more can be written.
        """
        if self.savers == 0:
            yield from self._one_by_one(items)
            return
        with _threads(self.readers, "read") as reading, _threads(self.savers, "save") as saving:
            yield from _Run(self, iter(items), reading, saving).outcomes()

    def _one_by_one(self, items: Iterable[Item]) -> Generator[Outcome[Item], None, None]:
        for item in items:
            try:
                result = self.compute([self.read(item)])[0]
                if isinstance(result, Exception):
                    raise result
                outcome = Outcome(item, self.save(item, result))
            except CannotWrite:
                raise
            except Exception as error:
                outcome = Outcome(item, error=error)
            yield outcome


class _Run(Generic[Item]):
    """A run of a pipeline: items move from ``reads`` to ``saves``, and the first that is saved leaves."""

    def __init__(
        self, stages: Stages[Item], items: Iterable[Item], reading: ThreadPoolExecutor, saving: ThreadPoolExecutor
    ):
        self.stages, self.items = stages, iter(items)
        self.reading, self.saving = reading, saving
        self.reads: deque[tuple[Item, int, Future[Any]]] = deque()
        self.saves: deque[tuple[Item, int, Future[Any] | Exception]] = deque()
        self.under_way = 0  # load of both
        self.next: tuple[Item, int] | None = self._take()

    def outcomes(self) -> Generator[Outcome[Item], None, None]:
        while self.reads or self.saves or self.next:
            self._fill()
            while self.saves and (self._is_done() or self._must_wait()):
                yield self._leave()
                self._fill()
            if self.reads:
                self._compute()

    def _take(self) -> tuple[Item, int] | None:
        for item in self.items:
            return item, self.stages.load(item)
        return None

    def _fill(self) -> None:
        """Begin to read further items while there is room."""
        while self.next and len(self.reads) < self.stages.ahead + self.stages.batch:
            item, load = self.next
            if self.under_way and self.under_way + load > self.stages.most:
                return
            self.reads.append((item, load, self.reading.submit(self.stages.read, item)))
            self.under_way += load
            self.next = self._take()

    def _compute(self) -> None:
        """Compute the next batch, and begin to save it."""
        batch = [self.reads.popleft() for _ in range(min(self.stages.batch, len(self.reads)))]
        results: list[Any] = [_result(future) for _, _, future in batch]
        usable = [number for number, result in enumerate(results) if not isinstance(result, Exception)]
        if usable:
            try:
                computed = self.stages.compute([results[number] for number in usable])
            except Exception as error:
                computed = [error] * len(usable)
            for number, result in zip(usable, computed, strict=True):
                results[number] = result
        for (item, load, _), result in zip(batch, results, strict=True):
            failed = isinstance(result, Exception)
            self.saves.append((item, load, result if failed else self.saving.submit(self.stages.save, item, result)))

    def _is_done(self) -> bool:
        future = self.saves[0][2]
        return isinstance(future, Exception) or future.done()

    def _must_wait(self) -> bool:
        """Whether the first item must leave before anything else can be done."""
        return not self.reads or len(self.saves) > self.stages.ahead

    def _leave(self) -> Outcome[Item]:
        item, load, future = self.saves.popleft()
        self.under_way -= load
        result = future if isinstance(future, Exception) else _result(future)
        if isinstance(result, CannotWrite):
            raise result
        return Outcome(item, error=result) if isinstance(result, Exception) else Outcome(item, result)


def _result(future: Future[Any]) -> Any:
    """Return the result of a thread's work, or its exception."""
    try:
        return future.result()
    except Exception as error:
        return error


@contextlib.contextmanager
def _threads(count: int, name: str) -> Generator[ThreadPoolExecutor, None, None]:
    """Give threads, which finish what they have begun, and nothing else, when the block is left early."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
