"""A lock that may belong to what is copied and pickled."""

from __future__ import annotations

import threading


class Lock:
    """A re-entrant lock; a copy, also one in another process, is a new lock that nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple:
        return type(self), ()
