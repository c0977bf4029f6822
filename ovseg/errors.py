"""Errors that the user can mend, and how the command lines show them."""

from __future__ import annotations

import contextlib
import reprlib
import sys
import traceback
from collections.abc import Iterator

from torch.utils.data import dataloader

LONGEST_MESSAGE = 1500  # characters
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_LOST_WORKER = "DataLoader worker (pid"  # how torch begins, wherever the main process is when it notices


class OvsegError(Exception):
    """Something the user gave cannot work.

    The message is one clear sentence or two: what is wrong, which file or key, and what to do. Values from files may
    be of any length: the middle of a message beyond :data:`LONGEST_MESSAGE` is left out.
    """

    def __init__(self, message: object = ""):
        text = str(message)
        half = LONGEST_MESSAGE // 2
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} [...] {text[-half:]}")


def shown(value: object) -> str:
    """``repr(value)``, cut to what a sentence can hold."""
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"
    except ValueError:  # Python writes no integer of more than some thousand digits
        return "a number of thousands of digits"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn :class:`OvsegError` into ``error: ...`` on stderr and exit status 2, Ctrl-C into status 130.

    A data-loading process that was killed from outside (by a system short of memory, mostly) is the user's, too. Any
    other exception is a defect of ours and keeps its traceback.
    """
    try:
        yield
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, ConnectionResetError) as error:
        if not _tells_of_lost_worker(error):
            raise
        print(
            f"error: a process that loads data is gone ({str(error).strip()}): what was saved is whole, run the same "
            "command with --resume; if memory ran out, with fewer workers (DATALOADER.NUM_WORKERS, --workers)",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _tells_of_lost_worker(error: Exception) -> bool:
    if isinstance(error, ConnectionResetError):  # its socket was noticed first; connections of others are no such thing
        return any(frame.filename == dataloader.__file__ for frame in traceback.extract_tb(error.__traceback__))
    return str(error).startswith(_LOST_WORKER)
