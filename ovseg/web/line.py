"""``Line``: jobs that wait for a few threads, no more than a limit."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ovseg.web.limits import Refused

POLL = 0.5  # seconds
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
        self._jobs: queue.SimpleQueue[tuple[Future, list[Callable[[], Any]]]] = queue.SimpleQueue()
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

    async def run(self, job: Callable[[], Result], is_left: Callable[[], Awaitable[bool]] | None = None) -> Result:
        """Do a job and return its result; one that still waits when the caller is cancelled is left out.

        Args:
            is_left: whether nobody waits for the result any longer; the job is then left out, too. It is asked once in
                :data:`POLL` seconds.

        Raises:
            Refused: 503, too many jobs wait; 499, the job was left out.
        """
        with self._lock:
            if self._present >= self.limit:
                raise Refused(503, f"{self.waiting} requests are waiting, and more are not taken: try again later")
            self._present += 1
        future: Future[Result] = Future()
        future.add_done_callback(self._leave)
        held = [job]
        future.add_done_callback(lambda _: held.clear())  # of a job that is left out, before its turn comes
        self._jobs.put((future, held))
        result = asyncio.wrap_future(future)
        try:
            while is_left is not None and not (await asyncio.wait([result], timeout=POLL))[0]:
                if await is_left() and future.cancel():
                    raise Refused(499, "the client has closed the connection")
            return await result
        finally:
            future.cancel()  # has no effect on a job that has begun

    def _leave(self, future: Future) -> None:
        with self._lock:
            self._present -= 1

    def _work(self) -> None:
        while True:
            future, held = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = held[0]()
            except BaseException as error:  # of the request, which raises it
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, held  # what they hold is large
            result = None
