"""``Line``: jobs that wait for a few threads, no more than a limit."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ovseg.web.limits import Refused

Result = TypeVar("Result")


class Line:
    """Threads that do jobs in the order of their arrival.

    They are daemons: a job that takes long does not keep a stopped server alive.

    Args:
        waiting: jobs that wait at most; more are refused.
        threads: jobs that are done at a time.
        name: of the threads.
    """

    def __init__(self, waiting: int, threads: int = 1, name: str = "model"):
        self.limit = waiting + threads
        self.threads = threads
        self._jobs: queue.SimpleQueue[tuple[Future, Callable[[], Any]]] = queue.SimpleQueue()
        self._present = 0
        self._lock = threading.Lock()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a thread."""
        return max(0, self._present - self.threads)

    @property
    def is_busy(self) -> bool:
        return self._present > 0

    async def run(self, job: Callable[[], Result]) -> Result:
        """Do a job and return its result; a job whose request was cancelled is left out.

        Raises:
            Refused: 503, too many jobs wait.
        """
        with self._lock:
            if self._present >= self.limit:
                raise Refused(503, f"{self.waiting} requests are waiting, and more are not taken: try again later")
            self._present += 1
        future: Future[Result] = Future()
        future.add_done_callback(self._leave)
        self._jobs.put((future, job))
        return await asyncio.wrap_future(future)

    def _leave(self, future: Future) -> None:
        with self._lock:
            self._present -= 1

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except BaseException as error:  # of the request, which raises it
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, job  # what they hold is large
            result = None
