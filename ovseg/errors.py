"""Errors that the user can correct, and their display on the command line."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import re
import reprlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from types import FrameType

LONGEST_MESSAGE = 1500  # characters
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_LOST_WORKER = "DataLoader worker (pid"  # start of torch's message
_CLASS_NAME = re.compile(r"\b(?:\w+\.)*[A-Z]\w*(?:Error|Exception)\b:?")
_ARGUMENT = re.compile("\x1a([^\x1a]*)\x1a")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FREE_SPACE = "free some space and run again"
_PERMISSIONS = "check its owner and permissions, or choose another place"
REMEDIES = {  # operating system errors that are caused by files, folders and disks
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
    """Error caused by user input, which the user can correct.

    The message states in one or two sentences what is wrong, in which file or key, and what to do. Messages longer than
    :data:`LONGEST_MESSAGE` characters are shortened in the middle, and control characters are escaped.

    A function whose arguments may come from keys or flags names them by :func:`argument`, as in
    ``OvsegError(f"{argument('depth')} is 0")``; the caller translates these names by :func:`argument_names`.
    """

    def __init__(self, message: object = ""):
        self.template = str(message)  # with the marks of :func:`argument`
        text = _ARGUMENT.sub(r"\1", self.template)
        text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
        half = LONGEST_MESSAGE // 2
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} [...] {text[-half:]}")

    def renamed(self, names: Mapping[str, str]) -> OvsegError:
        """Return the error with other names of arguments: configuration key or option by the argument's name."""
        return type(self)(_ARGUMENT.sub(lambda found: names.get(found[1], found[0]), self.template))


def argument(name: str) -> str:
    """Return the name of an argument, marked so that :func:`argument_names` can replace it in an error's message."""
    return f"\x1a{name}\x1a"


@contextlib.contextmanager
def argument_names(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the names of arguments in errors raised by the block.

    Args:
        names: configuration key or command-line option by name of the argument; other arguments keep their names.
    """
    try:
        yield
    except OvsegError as error:
        raise error.renamed(names).with_traceback(error.__traceback__) from error.__cause__


def shown(value: object) -> str:
    """Return ``repr(value)``, shortened to 200 characters."""
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"
    except ValueError:  # Python limits the digits of an integer's text
        return "a number of thousands of digits"


def reason_of(error: BaseException) -> str:
    """Return the message of any exception on one line, shortened and without names of classes."""
    if isinstance(error, KeyError) and error.args:
        return f"it has no {shown(error.args[0])}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    text = " ".join(_CLASS_NAME.sub("", str(getattr(error, "strerror", None) or error)).split())
    return f"{text[:200]}..." if len(text) > 200 else text or "it is damaged"


class CannotWrite(OvsegError):
    """Error of a folder that cannot be written: the disk is full or read-only, or permissions are missing."""


def explain_system_error(error: BaseException) -> str | None:
    """Return a sentence for an error of files, folders or disks; None for any other."""
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # Path.resolve's form of ELOOP
        error = error.__context__ or error
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return None
    what = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{what}: {REMEDIES[error.errno]}"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Print :class:`OvsegError` as ``error: ...`` on stderr and exit with status 2; Ctrl-C exits with 130, SIGTERM 143.

    A full disk, missing permissions and a data-loading process that was killed (mostly for lack of memory) are handled
    in the same way. Any other exception is a defect of this package and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # file names may be invalid text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    in_main = threading.current_thread() is threading.main_thread()  # signal handlers need the main thread
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()} if in_main else {}
    logging.raiseExceptions = False  # a log that cannot be written must not end a run
    try:
        yield
    except OvsegError as error:
        _end(f"error: {error}", 2)
    except (OSError, RuntimeError) as error:
        try:
            _end_for(error)
        except RuntimeError as second:  # PyTorch's handler of SIGCHLD may report a killed worker again meanwhile
            if second is error:
                raise
            _end_for(second)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM by an exception, so that temporary files are removed."""
    _end("terminated", 128 + number)


def _end(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


def _end_for(error: Exception) -> None:
    """End with a sentence for an error of the system or of a data loader's process; raise any other again."""
    if _is_lost_worker(error):
        _end(
            f"error: a process that loads data was killed ({str(error).strip()}): saved files are complete, run the "
            "same command with --resume; if memory ran out, with fewer workers (DATALOADER.NUM_WORKERS, --workers)",
            2,
        )
    if (sentence := explain_system_error(error)) is None:
        raise error
    _end(f"error: {sentence}", 2)


def _is_lost_worker(error: Exception) -> bool:
    if isinstance(error, ConnectionResetError):  # only the data loader's own socket
        loader = getattr(sys.modules.get("torch.utils.data.dataloader"), "__file__", None)
        return any(frame.f_code.co_filename == loader for frame, _ in traceback.walk_tb(error.__traceback__))
    return str(error).startswith(_LOST_WORKER)
