"""Temporary files, and removal of those that killed processes left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

# .STEM.PROCESS.TOKEN.tmp.SUFFIX; older versions wrote no token, and a second suffix is added by libraries that write
# into a folder
_NAME = re.compile(r"\..*\.(\d+)(?:\.([0-9a-f]{12}))?\.tmp(\.\w+){0,2}", re.DOTALL)
_OF_SAFETENSORS = re.compile(r"\.tmp\w{6}")
_LONGEST_NAME, _LONGEST_SUFFIX = 255, 20  # bytes, of most file systems and of any known format
_DAY = 24 * 3600.0  # seconds
_writing: set[str] = set()  # temporary names of this process


def _machine() -> str:
    """Return an identifier of this machine or container, outside of which process numbers have no meaning."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:6]


_MACHINE = _machine()


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
            temporary.unlink(missing_ok=True)
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
