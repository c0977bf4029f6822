"""Atomic writing of files, removal of what killed processes left, locks of output folders, and checks of paths."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from ovseg.errors import REMEDIES, CannotWrite, OvsegError, reason_of, shown

try:
    import fcntl
except ImportError:  # Windows: concurrent runs are not detected there
    fcntl = None

logger = logging.getLogger(__name__)

# Permissions that a new file gets. The user's umask can only be read by setting it, for all threads: so once, here.
_umask = os.umask(0o077)
os.umask(_umask)
USUAL_MODE = 0o666 & ~_umask

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
_NUMBER = re.compile(r"\(os error (\d+)\)")  # in messages of safetensors
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error|unexpected pos")
_cleaned: set[str] = set()  # folders in which this process has looked for leftovers
is_file, is_dir = os.path.isfile, os.path.isdir  # False for invalid names (too long, a zero byte), unlike Path's
_held: set[str] = set()  # folders that this process has locked

# .STEM.PROCESS.TOKEN.tmp.SUFFIX; older versions wrote no token, and a second suffix is added by libraries that write
# into a folder
_NAME = re.compile(r"\..*\.(\d+)(?:\.([0-9a-f]{12}))?\.tmp(\.\w+){0,2}", re.DOTALL)
_OF_SAFETENSORS = re.compile(r"\.tmp\w{6}")
_LONGEST_NAME, _LONGEST_SUFFIX = 255, 20  # bytes, of most file systems and of any known format
_DAY = 24 * 3600.0  # seconds
_writing: set[str] = set()  # temporary names of this process
try:  # outside of this machine or container, process numbers have no meaning
    _PROCESSES = os.readlink("/proc/self/ns/pid")
except OSError:
    _PROCESSES = ""
_MACHINE = hashlib.sha256(f"{socket.gethostname()} {_PROCESSES}".encode()).hexdigest()[:6]


def matches(path: str | Path) -> bool:
    """Return whether a path is there, or one that fits a pattern such as ``shards/{0000..0099}.tar`` or ``*.tar``.

    The part in braces fits any text here, so that the pattern is found although some of its files are missing.
    """
    if os.path.exists(path):
        return True
    pattern = re.sub(r"\{[^{}/]*\}", "*", str(path).replace("[", "[[]"))
    return "*" in pattern and "\0" not in pattern and any(True for _ in glob.iglob(pattern))


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, and rename it to ``path`` if the block succeeds.

    The temporary name is unique to the process and thread and keeps the suffix, for libraries that choose a format by
    it. On any exception, Ctrl-C included, the temporary file is removed and an older ``path`` stays unchanged.

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
            found = temporary.lstat()
            if not stat.S_ISLNK(found.st_mode) and found.st_nlink == 1:  # the mode of a link is that of the original
                temporary.chmod(USUAL_MODE)  # some libraries write files that only the owner can read
            os.replace(temporary, path)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates, as in names that are not text, are escaped.

    Raises:
        OvsegError: see :func:`atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_writable(path: str | Path) -> None:
    """Check that a file can be written, including the folders that do not exist yet.

    Raises:
        OvsegError: see :func:`atomic_path`.
    """
    path = Path(path)
    place = path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    with explained_writing(path):
        place.mkdir(exist_ok=True)  # fails for a file or a broken link
    with explained_writing(path), temporary_name(place / path.name) as temporary:
        temporary.write_bytes(bytes(4096))  # a full disk may have room for a name


@contextlib.contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Convert operating system errors raised while ``path`` is written to an OvsegError with a one-sentence message.

    Raises:
        CannotWrite: the disk is full or the folder cannot be written.
        OvsegError: the name cannot be written.
    """
    try:
        os.stat(path)
    except ValueError as error:  # a byte 0 in it, or a character that file systems cannot store
        raise OvsegError(f"cannot write {shown(str(path))}: {reason_of(error)}") from error
    except OSError:
        pass  # the block raises it if it matters
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
    """Return the errno of an error, which torch and safetensors wrap in errors of their own; None if it has none."""
    if isinstance(error, OSError):
        return error.errno
    if found := _NUMBER.search(str(error)):
        return int(found[1])
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        return _error_number(error.__context__) or errno.ENOSPC
    return None


def _is_of(error: BaseException, path: Path) -> bool:
    """Return whether an error concerns the path that is written, not a file that is read in the same block."""
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


def shorten(stem: str, room: int) -> str:
    """Return a stem truncated so that it fits into a file name with ``room`` further bytes."""
    data = os.fsencode(stem)
    return stem if len(data) + room <= _LONGEST_NAME else data[: _LONGEST_NAME - room].decode(errors="ignore")


@contextlib.contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """Yield a unique temporary path in the folder of ``path``; a file left at the end of the block is removed.

    The name keeps the suffix, for libraries that choose a format by it.
    """
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    end = f".{os.getpid()}.{_MACHINE}{secrets.token_hex(3)}.tmp{suffix}"
    stem = os.fsencode(path.stem).decode(errors="ignore")  # some libraries need names that are valid text
    stem = shorten(stem, len(os.fsencode(end)) + 10)  # ten for the dot and a library's ending
    temporary = path.with_name(f".{stem}{end}")
    _writing.add(temporary.name)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _writing.discard(temporary.name)


def find_leftovers(folder: str | Path, owned: bool = True, below: bool = True) -> list[Path]:
    """Return the temporary files of ended processes in a folder.

    Args:
        folder: folder to search.
        owned: only this program writes into the folder; includes files whose writer is unknown.
        below: search subfolders, too.
    """
    found = []
    for place, _, _ in os.walk(folder) if below else [(folder, [], [])]:
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            found += [Path(entry.path) for entry in entries if _is_leftover(entry, owned)]
    return found


def remove_leftovers(folder: str | Path, owned: bool = False, below: bool = False) -> None:
    """Remove what :func:`find_leftovers` finds."""
    for path in find_leftovers(folder, owned, below):
        with contextlib.suppress(OSError):
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def _is_leftover(entry: os.DirEntry, owned: bool) -> bool:
    name = _NAME.fullmatch(entry.name)
    if name is None:
        return owned and _OF_SAFETENSORS.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)
    process, token = int(name[1]), name[2]
    if token is None:
        return owned and not _alive(process)
    if not token.startswith(_MACHINE):
        return owned or time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
    if process == os.getpid():  # in containers, process numbers repeat from run to run
        return not any(entry.name.startswith(name) for name in tuple(_writing))
    return not _alive(process)


def _alive(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        pass
    return True


@contextlib.contextmanager
def locked_folder(folder: str | Path, remedy: str = "choose another --output") -> Iterator[None]:
    """Lock an output folder against other processes, create it if necessary, and remove leftovers of killed processes.

    The lock ends with the process. It is reentrant within a process.

    Args:
        folder: output folder.
        remedy: instruction for choosing another folder, for messages.

    Raises:
        OvsegError: another process holds the lock, or the folder cannot be written.
    """
    folder = Path(folder)
    if (key := os.path.realpath(folder)) in _held:  # closing a second handle would release the POSIX lock
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
    """Lock the lock file of a folder and write the name of this process into it."""
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
        logger.warning("cannot lock %s (%s): a second run in it will not be detected", folder, error.strerror)
    with contextlib.suppress(OSError):  # a full disk is reported by the first file that matters
        file.truncate(0)
        file.write(f"process {os.getpid()}: {shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}\n")
        file.flush()


def expand_user(path: str | Path) -> Path:
    """Return the path with ``~`` replaced by the home folder; ``~name`` of an unknown user is kept as it is.

    Raises:
        OvsegError: there is no home folder, as in containers without users.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        if Path(path).parts[0] != "~":
            return Path(path)
        raise OvsegError(f"{path}: this user has no home folder: write the whole path in place of ~") from error


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's bytes."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path, what: str) -> os.stat_result:
    """Check that a path is a regular file, and return its ``os.stat`` result.

    Args:
        path: the file.
        what: kind of file, for messages, such as ``"image"``.

    Raises:
        OvsegError: the file is missing, a folder or a device, or its name is invalid.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        problem = f"{path} is a link to a missing file" if path.is_symlink() else f"there is no {what} {path}"
        raise OvsegError(problem) from error
    except (OSError, ValueError) as error:  # a name too long, links in a circle, a byte 0 in it
        raise OvsegError(f"cannot read the {what} {path}: {reason_of(error)}") from error
    if stat.S_ISDIR(found.st_mode):
        raise OvsegError(f"{path} is a folder: give the {what} itself")
    if not stat.S_ISREG(found.st_mode):
        raise OvsegError(f"{path} is not a regular file")
    return found


def cache_dir() -> Path:
    """Return the cache folder.

    It is ``$OVSEG_CACHE``, else ``$XDG_CACHE_HOME/ovseg``, else ``~/.cache/ovseg``; for a user without a home folder, a
    private folder in the system's temporary folder.

    Raises:
        OvsegError: that temporary folder belongs to another user.
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
        raise OvsegError(f"this user has no home folder and {folder} is not yours: set OVSEG_CACHE to a folder")
    return folder
