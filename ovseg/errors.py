"""Errors that the user can correct, and how the command lines show them."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import reprlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from types import FrameType

from torch.utils.data import dataloader

LONGEST_MESSAGE = 1500  # characters
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_LOST_WORKER = "DataLoader worker (pid"  # how torch begins, wherever the main process is when it notices
_CLASS_NAME = re.compile(r"\b(?:\w+\.)*[A-Z]\w*(?:Error|Exception)\b:?")
_ARGUMENT = re.compile("\x1a([^\x1a]*)\x1a")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FREE_SPACE = "free some space and run again"
_PERMISSIONS = "check its owner and permissions, or choose another place"
REMEDIES = {  # errors of the system that lie in files, folders and disks, never in our code
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "the system limits the size of files (ulimit -f)",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "choose another folder",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.ELOOP: "correct the symbolic links",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EISDIR: "a file is needed there",
    errno.EEXIST: "choose another name, or move it away",
    errno.EIO: "the disk or its connection fails",
    errno.ESTALE: "the connection to the file server was lost",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer workers",
    errno.ENFILE: "close other programs",
}


class OvsegError(Exception):
    """Something the user gave cannot work.

    The message is one clear sentence or two: what is wrong, which file or key, and what to do. Names and values may be
    of any length and hold line ends: the middle of a message beyond :data:`LONGEST_MESSAGE` is left out, and control
    characters are written as in Python.

    A part that knows nothing of configurations names its own arguments, ``OvsegError(f"{argument('depth')} is 0")``;
    who filled them from keys or flags says so by :func:`argument_names`.
    """

    def __init__(self, message: object = ""):
        self.template = str(message)  # with the marks of :func:`argument`
        text = _ARGUMENT.sub(r"\1", self.template)
        text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
        half = LONGEST_MESSAGE // 2
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} [...] {text[-half:]}")


def argument(name: str) -> str:
    """Return the name of an argument, marked so that :func:`argument_names` can replace it in an error's message."""
    return f"\x1a{name}\x1a"


@contextlib.contextmanager
def argument_names(names: Mapping[str, str]) -> Iterator[None]:
    """In errors that pass, replace the names of arguments by those that the user knows.

    Args:
        names: configuration key or command-line option by the argument's name; other arguments keep their names.
    """
    try:
        yield
    except OvsegError as error:
        renamed = _ARGUMENT.sub(lambda found: names.get(found[1], found[0]), error.template)
        if renamed == error.template:
            raise
        raise type(error)(renamed).with_traceback(error.__traceback__) from error.__cause__


def shown(value: object) -> str:
    """``repr(value)``, cut to what a sentence can hold."""
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"
    except ValueError:  # Python writes no integer of more than some thousand digits
        return "a number of thousands of digits"


def reason_of(error: BaseException) -> str:
    """Return what an error of Python or of a library says, on one line, cut, and without the names of classes."""
    if isinstance(error, KeyError) and error.args:
        return f"it has no {shown(error.args[0])}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    text = " ".join(_CLASS_NAME.sub("", str(getattr(error, "strerror", None) or error)).split())
    return f"{text[:200]}..." if len(text) > 200 else text or "it is damaged"


class CannotWrite(OvsegError):
    """A folder takes no more files: the disk is full or read-only, or permissions are missing."""


def explain_system_error(error: BaseException) -> str | None:
    """Return one sentence for an error of files, folders and disks, None for any other."""
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # how Path.resolve says ELOOP
        error = error.__context__ or error
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return None
    what = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{what}: {REMEDIES[error.errno]}"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn :class:`OvsegError` into ``error: ...`` on stderr and exit status 2, Ctrl-C into 130, SIGTERM into 143.

    A full disk, missing permissions and the like are the user's, too, and so is a data-loading process that was killed
    from outside (by a system short of memory, mostly). Any other exception is a defect of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    in_main = threading.current_thread() is threading.main_thread()  # others may not set them
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()} if in_main else {}
    logging.raiseExceptions = False  # a log that cannot be written, for lack of space, must not end or flood a run
    try:
        yield
    except OvsegError as error:
        _end(f"error: {error}", 2)
    except (OSError, RuntimeError) as error:
        if _is_lost_worker(error):
            _end(
                f"error: a process that loads data is gone ({str(error).strip()}): what was saved is whole, run the "
                "same command with --resume; if memory ran out, with fewer workers (DATALOADER.NUM_WORKERS, --workers)",
                2,
            )
        if (sentence := explain_system_error(error)) is None:
            raise
        _end(f"error: {sentence}", 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM: end by an exception, so that temporary files are removed."""
    _end("terminated", 128 + number)


def _end(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


def _is_lost_worker(error: Exception) -> bool:
    if isinstance(error, ConnectionResetError):  # its socket was noticed first; connections of others are no such thing
        return any(frame.filename == dataloader.__file__ for frame in traceback.extract_tb(error.__traceback__))
    return str(error).startswith(_LOST_WORKER)
