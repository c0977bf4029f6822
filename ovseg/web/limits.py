"""What a server accepts, and the error of what it does not."""

from __future__ import annotations

from dataclasses import dataclass

from ovseg.errors import OvsegError

MEGABYTE = 10**6


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        upload: largest body of a request, bytes.
        pixels: largest image.
        texts: most words and synonyms that are written in a request; label sets are not counted.
        waiting: requests that wait for the model at most; more are refused.
        idle: seconds that results of the page are kept after their last use.
        memory: of all results that are kept, bytes; the ones that were not used for the longest time go first.
    """

    upload: int = 20 * MEGABYTE
    pixels: int = 25 * MEGABYTE
    texts: int = 1000
    waiting: int = 32
    idle: float = 1800.0
    memory: int = 1000 * MEGABYTE


class Refused(OvsegError):
    """Error of a request.

    Args:
        status: HTTP status code.
        message: what is wrong, and what to do.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
