"""Writing files so that an interruption never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ovseg.errors import OvsegError

try:
    import fcntl
except ImportError:  # Windows: two runs at the same time are not noticed there
    fcntl = None


# Permissions that a new file gets. The user's umask can only be read by setting it, for all threads: so once, here.
_umask = os.umask(0o077)
os.umask(_umask)
USUAL_MODE = 0o666 & ~_umask


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block ends well.

    The temporary name keeps the suffix, so libraries that choose a format by suffix still work. On any
    exception, Ctrl-C included, the temporary file is removed and an older ``path`` stays as it was.

    Raises:
        OvsegError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(USUAL_MODE)  # some libraries write for the owner's eyes only
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OvsegError(f"disk full while writing {path}: free some space and run again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OvsegError(f"cannot write {path} ({error.strerror}): choose another output folder") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of an output folder, which is made if need be; the system frees it when this process dies.

    Raises:
        OvsegError: another process is at work there, or it cannot be written or locked.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")  # noqa: SIM115 - held for the whole block
    except OSError as error:
        raise OvsegError(f"cannot write to {folder} ({error.strerror}): choose another --output") from error
    with file:
        try:
            if fcntl is not None:
                # a POSIX lock: unlike flock's, child processes do not inherit it and outlive us with it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise OvsegError(f"another run is writing to {folder}: wait for it, or choose another --output") from error
        except OSError as error:
            raise OvsegError(f"cannot lock {folder / '.lock'} ({error.strerror}): choose a local folder") from error
        yield


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's bytes."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False, too, for names that no file can have (too long, a byte 0)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def cache_dir() -> Path:
    """Folder for what can be made again: ``$OVSEG_CACHE``, else ``$XDG_CACHE_HOME/ovseg``, else ``~/.cache/ovseg``."""
    if chosen := os.environ.get("OVSEG_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovseg"
