"""Writing files so that an interruption never leaves half of one, into folders that one run owns."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from ovseg.errors import REMEDIES, CannotWrite, OvsegError, reason_of, shown
from ovseg.io.leftovers import remove_leftovers, temporary_name

try:
    import fcntl
except ImportError:  # Windows: two runs at the same time are not noticed there
    fcntl = None

logger = logging.getLogger(__name__)

# Permissions that a new file gets. The user's umask can only be read by setting it, for all threads: so once, here.
_umask = os.umask(0o077)
os.umask(_umask)
USUAL_MODE = 0o666 & ~_umask

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
_NUMBER = re.compile(r"\(os error (\d+)\)")  # how safetensors says which
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error|unexpected pos")
_cleaned: set[str] = set()  # folders in which this process has looked for leftovers
_held: set[str] = set()  # folders that this process has locked


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block ends well.

    The temporary name keeps the suffix, so libraries that choose a format by suffix still work, and no other process
    or thread gets the same one. On any exception, Ctrl-C included, the temporary file is removed and an older ``path``
    stays as it was.

    Raises:
        CannotWrite: the disk is full or the folder cannot be written.
        OvsegError: the name cannot be written.
    """
    path = Path(path)
    with explained_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (folder := os.path.abspath(path.parent)) not in _cleaned:
            _cleaned.add(folder)
            remove_leftovers(folder)
        with temporary_name(path) as temporary:
            yield temporary
            temporary.chmod(USUAL_MODE)  # some libraries write for the owner's eyes only
            os.replace(temporary, path)


def check_writable(path: str | Path) -> None:
    """Check that a file can be written there, or into the folders that are still to be made.

    Raises:
        OvsegError: as :func:`atomic_path`.
    """
    path = Path(path)
    place = path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    with explained_writing(path):
        place.mkdir(exist_ok=True)  # a file, or a link to nothing, is no folder
    with explained_writing(path), temporary_name(place / path.name) as temporary:
        temporary.write_bytes(bytes(4096))  # a full disk may have room for a name


@contextlib.contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Turn errors of the system while a file or a folder is written into one sentence.

    Raises:
        CannotWrite: the disk is full or the folder cannot be written.
        OvsegError: the name cannot be written.
    """
    try:
        os.stat(path)
    except ValueError as error:  # a byte 0 in it, or a character that file systems cannot store
        raise OvsegError(f"cannot write {shown(str(path))}: {reason_of(error)}") from error
    except OSError:
        pass  # the block says so where it matters
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _error_number(error)
        if number is None or not _is_of(error, path):
            raise
        reason = os.strerror(number)
        if number in _FULL:
            raise CannotWrite(f"disk full while writing {path}: free some space and run again") from error
        if number in _FORBIDDEN:
            raise CannotWrite(f"cannot write {path} ({reason}): choose another output folder") from error
        if number in REMEDIES:
            raise OvsegError(f"cannot write {path} ({reason}): {REMEDIES[number]}") from error
        raise


def _error_number(error: BaseException | None) -> int | None:
    """The system's number of an error, which torch and safetensors replace by an error of their own."""
    if isinstance(error, OSError):
        return error.errno
    if found := _NUMBER.search(str(error)):
        return int(found[1])
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        return _error_number(error.__context__) or errno.ENOSPC
    return None


def _is_of(error: BaseException, path: Path) -> bool:
    """Whether an error of the system is of what is written, not of something that is read in the same block."""
    name = getattr(error, "filename", None)
    if not isinstance(name, (str, bytes)):
        return True
    name, path = os.path.abspath(os.fsdecode(name)), os.path.abspath(path)
    folder = os.path.dirname(name)
    if path.startswith(name):  # itself or a folder above it
        return True
    if ".tmp" in os.path.basename(name):
        return path.startswith(folder) or folder.startswith(path)
    return error.errno != errno.ENOENT and (name.startswith(path + os.sep) or folder == os.path.dirname(path))


@contextlib.contextmanager
def locked_folder(folder: str | Path, remedy: str = "choose another --output") -> Iterator[None]:
    """Keep other processes out of an output folder, which is made if need be, and remove what killed ones left.

    The system frees the folder when this process dies. A process that holds the folder may ask for it again.

    Args:
        remedy: what to do to use another folder.

    Raises:
        OvsegError: another process is at work there, or it cannot be written.
    """
    folder = Path(folder)
    if (key := os.path.realpath(folder)) in _held:  # to open the file again would free it: POSIX locks are like that
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 - held for the block
    except OSError as error:
        raise CannotWrite(f"cannot write to {folder} ({error.strerror}): {remedy}") from error
    with file:
        _lock(file, folder, remedy)
        _held.add(key)
        try:
            remove_leftovers(folder, owned=True)
            yield
        finally:
            _held.discard(key)


def _lock(file: IO[str], folder: Path, remedy: str) -> None:
    """Lock the file of a folder and write into it who holds it."""
    if fcntl is None:
        return
    try:
        # a POSIX lock: unlike flock's, child processes do not inherit it and outlive us with it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = " ".join(file.read(200).split())
        who = f" ({holder})" if holder else ""
        raise OvsegError(f"another run is writing to {folder}{who}: wait for it, or {remedy}") from error
    except OSError as error:
        logger.warning("cannot lock %s (%s): a second run there will not be noticed", folder, error.strerror)
    with contextlib.suppress(OSError):  # a full disk, which the first file that matters will tell
        file.truncate(0)
        file.write(f"process {os.getpid()}: {shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}\n")
        file.flush()


def expand_user(path: str | Path) -> Path:
    """Return the path with ``~`` replaced by the home folder; ``~name`` of nobody is a name like any other.

    Raises:
        OvsegError: there is no such folder, as in containers without users.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        if Path(path).parts[0] != "~":
            return Path(path)
        raise OvsegError(f"{path}: no home folder is known here, write the whole path in place of ~") from error


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's bytes."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path, what: str) -> os.stat_result:
    """Return the size and times of a file that can be read to its end.

    Args:
        path: the file.
        what: what it is, for messages, such as ``"image"``.

    Raises:
        OvsegError: it is missing, a folder or a device, or no file can have such a name.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        problem = f"{path} is a link to a file that is not there" if path.is_symlink() else f"there is no {what} {path}"
        raise OvsegError(problem) from error
    except (OSError, ValueError) as error:  # a name too long, links in a circle, a byte 0 in it
        raise OvsegError(f"cannot read the {what} {path}: {reason_of(error)}") from error
    if stat.S_ISDIR(found.st_mode):
        raise OvsegError(f"{path} is a folder: give the {what} itself")
    if not stat.S_ISREG(found.st_mode):
        raise OvsegError(f"{path} is not a regular file")
    return found


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False, too, for names that no file can have (too long, a byte 0)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Return whether there is such a folder; False, too, for names that none can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def cache_dir() -> Path:
    """Return the folder for what can be made again.

    ``$OVSEG_CACHE``, else ``$XDG_CACHE_HOME/ovseg``, else ``~/.cache/ovseg``; for a user without a home folder, one of
    this user's alone among the system's temporary files.

    Raises:
        OvsegError: somebody else owns that one.
    """
    if chosen := os.environ.get("OVSEG_CACHE"):
        return expand_user(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovseg"
    except RuntimeError:
        folder = Path(tempfile.gettempdir(), f"ovseg-{os.getuid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    if not folder.is_dir() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OvsegError(f"no home folder is known here and {folder} is not yours: set OVSEG_CACHE to a folder")
    return folder
