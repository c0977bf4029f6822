"""Writing files so that an interruption never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ovseg.errors import OvsegError


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


def cache_dir() -> Path:
    """Folder for what can be made again: ``$OVSEG_CACHE``, else ``$XDG_CACHE_HOME/ovseg``, else ``~/.cache/ovseg``."""
    if chosen := os.environ.get("OVSEG_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovseg"
