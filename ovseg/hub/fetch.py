"""Files of the Hugging Face hub: fetched on request, resumed after any interruption, verified by checksum.

The library huggingface_hub talks to the hub: its tokens, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` count. It starts a
download of a killed process anew, however large; here the part that arrived stays, and the next call continues it.

Layout, below :func:`ovseg.io.files.cache_dir`::

    hub/ORGANISATION--NAME/revisions.json          commit of each revision that was asked for
    hub/ORGANISATION--NAME/COMMIT/FILES            complete, verified
    hub/ORGANISATION--NAME/COMMIT/.files.json      their sizes and checksums
    hub/ORGANISATION--NAME/COMMIT/.FILE.ID.part    what has arrived of an unfinished file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ovseg.errors import CannotWrite, OvsegError, reason_of, shown
from ovseg.io.files import atomic_path, cache_dir, explained_writing, file_digest, write_text

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
_RECORD, _REVISIONS = ".files.json", "revisions.json"
_SECONDS = 10  # until an answer of the hub


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: path in the repository, with slashes.
        size: bytes.
        sha256: of the content; "" where the hub does not state it.
        blob: git's id of the content, a SHA-1; of files whose sha256 is unknown.
    """

    name: str
    size: int
    sha256: str = ""
    blob: str = ""

    def is_of(self, path: Path) -> bool:
        """Return whether a file has this content."""
        if self.sha256:
            return file_digest(path) == self.sha256
        content = path.read_bytes()  # small: the hub states the sha256 of large files
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == self.blob


def fetch(
    repository: str,
    wanted: Sequence[str],
    *,
    revision: str = "",
    sha256: Mapping[str, str] | None = None,
    network: bool = True,
    update: bool = False,
) -> Path:
    """Return the folder of this machine with files of a repository on the hub, downloaded if necessary.

    A branch is pinned: its commit is recorded at the first call, and later calls return the files of this commit
    without network. Files in the cache of huggingface_hub (of ``hf download``, say) are used, also without network.

    Args:
        repository: ``"ORGANISATION/NAME"``.
        wanted: names of files, or patterns such as ``"*.safetensors"``; a name must exist, a pattern may fit none.
        revision: branch, tag or commit; "" for the default branch.
        sha256: known checksums, by name of the file; others are those that the hub states.
        network: permit the download. ``HF_HUB_OFFLINE=1`` forbids it, too.
        update: look for a newer commit of the branch.

    Raises:
        OvsegError: the name is not valid; there is no such repository, revision or file; it is not on this machine and
            there is no network; a checksum is wrong; or the disk is full.
    """
    if not NAME.fullmatch(repository) or ".." in repository or "--" in repository:
        raise OvsegError(f"{shown(repository)} is not a name on the Hugging Face hub: give ORGANISATION/NAME")
    place, revision = cache_dir() / "hub" / repository.replace("/", "--"), revision or "main"
    commit = revision if COMMIT.fullmatch(revision) else "" if update else _read(place / _REVISIONS).get(revision, "")
    if COMMIT.fullmatch(str(commit)) and _is_complete(place / commit, wanted):
        return place / commit
    hub = _library()
    if not network or hub.constants.HF_HUB_OFFLINE:
        return _from_library_cache(hub, repository, wanted, str(commit or revision), sha256 or {})
    endpoint = os.environ.get("HF_ENDPOINT") or None
    with _explained(hub, repository, revision):
        about = hub.HfApi(endpoint=endpoint).model_info(
            repository, revision=commit or revision, files_metadata=True, timeout=_SECONDS
        )
    files = _chosen(about.siblings or (), wanted, sha256 or {}, repository)
    folder = place / str(about.sha)
    with explained_writing(folder), _locked(place):
        _check_space(folder, files)
        for file in files:
            with _explained(hub, repository, revision):
                _download(hub, repository, str(about.sha), file, folder, endpoint)
    known = _read(folder / _RECORD)
    known |= {file.name: asdict(file) | {"sha256": file_digest(folder / file.name)} for file in files}
    known["wanted"] = sorted({*known.get("wanted", ()), *wanted})
    write_text(folder / _RECORD, json.dumps(known, indent=1))
    write_text(place / _REVISIONS, json.dumps(_read(place / _REVISIONS) | {revision: about.sha}, indent=1))
    return folder


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of the files of a folder that :func:`fetch` returned, by name; empty for other folders."""
    return {name: about["sha256"] for name, about in _read(folder / _RECORD).items() if isinstance(about, dict)}


@contextlib.contextmanager
def offline(really: bool = True) -> Iterator[None]:
    """Let no library download from the hub in a block, as with ``HF_HUB_OFFLINE=1``; in all threads of the process.

    Args:
        really: False for a block without effect.
    """
    try:
        from huggingface_hub import constants, utils
    except ImportError:  # then nothing can be downloaded
        really = False
    if not really:
        yield
        return
    was, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    reset = getattr(utils, "reset_sessions", lambda: None)  # before 1.0, a session keeps the mode
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"  # the variable: for libraries imported meanwhile
    reset()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        os.environ.pop("HF_HUB_OFFLINE") if variable is None else os.environ.update(HF_HUB_OFFLINE=variable)
        reset()


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise OvsegError(
            f"the hub needs the package huggingface_hub ({reason_of(error)}): `pip install huggingface_hub`"
        ) from error
    return huggingface_hub


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_complete(folder: Path, wanted: Sequence[str]) -> bool:
    known = _read(folder / _RECORD)
    if not set(wanted) <= set(known.pop("wanted", ())):
        return False
    with contextlib.suppress(OSError, TypeError, KeyError):
        return all((folder / name).stat().st_size == about["size"] for name, about in known.items())
    return False


def _from_library_cache(
    hub: Any, repository: str, wanted: Sequence[str], revision: str, sha256: Mapping[str, str]
) -> Path:
    """Return the folder in the cache of huggingface_hub that has the wanted files, of the commit that is recorded."""
    folder = None
    try:
        folder = Path(
            hub.snapshot_download(repository, revision=revision, allow_patterns=list(wanted), local_files_only=True)
        )
    except Exception as error:  # the library has several kinds of errors for what is not there
        logger.debug("not in the cache of huggingface_hub: %s", error)
    if folder is not None and all((folder / name).is_file() for name in wanted if not _is_pattern(name)):
        for name, known in sha256.items():
            if (folder / name).is_file() and (actual := file_digest(folder / name)) != known:
                raise OvsegError(_wrong(repository, name, actual, known))
        return folder
    why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "downloads were not permitted"
    raise OvsegError(
        f"{repository} is not on this machine, and {why}: permit the download once, or run "
        f"`ovseg models download hf-hub:{repository}` on a machine with network and copy the folder that it prints"
    )


def _chosen(
    siblings: Sequence[Any], wanted: Sequence[str], sha256: Mapping[str, str], repository: str
) -> list[RemoteFile]:
    """Return the wanted files of a repository."""
    files = []
    for sibling in siblings:
        name = sibling.rfilename
        if not any(fnmatch(name, pattern) for pattern in wanted):
            continue
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise OvsegError(f"{repository} has a file {shown(name)} that would leave its folder: do not use it")
        lfs = sibling.lfs or {}
        stated = str((lfs.get("sha256") if isinstance(lfs, Mapping) else lfs.sha256) or "")
        known = sha256.get(name, "")
        if known and stated and known != stated:
            raise OvsegError(_wrong(repository, name, stated, known))
        files.append(RemoteFile(name, int(sibling.size or 0), known or stated, str(sibling.blob_id or "")))
    found = {file.name for file in files}
    if absent := [name for name in wanted if not _is_pattern(name) and name not in found]:
        have = ", ".join(sorted(sibling.rfilename for sibling in siblings)[:8])
        raise OvsegError(f"{repository} on the Hugging Face hub has no file {absent[0]} (it has {have}): give another")
    return files


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _part(folder: Path, file: RemoteFile) -> Path:
    path = folder / file.name
    return path.with_name(f".{path.name}.{(file.sha256 or file.blob)[:12]}.part")


def _check_space(folder: Path, files: Sequence[RemoteFile]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not (folder / file.name).is_file()]
    arrived = sum(part.stat().st_size for part in (_part(folder, file) for file in missing) if part.is_file())
    needed, free = sum(file.size for file in missing) - arrived, shutil.disk_usage(folder).free
    if needed > free:
        raise CannotWrite(
            f"the download needs {needed / 1e6:,.0f} MB, and {folder} has {free / 1e6:,.0f} MB of free disk: free some "
            "space, or set OVSEG_CACHE to a folder on another disk"
        )


def _download(hub: Any, repository: str, commit: str, file: RemoteFile, folder: Path, endpoint: str | None) -> None:
    """Write one file whose checksum is right; what has arrived of it before is continued."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target, part = folder / file.name, _part(folder, file)
    if target.is_file() and target.stat().st_size == file.size and file.is_of(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_linked(hub.try_to_load_from_cache(repository, file.name, revision=commit), file, target):
        return
    url = hub.hf_hub_url(repository, file.name, revision=commit, endpoint=endpoint)
    actual = ""
    for _ in range(2):
        start = part.stat().st_size if part.is_file() else 0
        if start > file.size:
            part.unlink()
            start = 0
        if start:
            logger.info("%s: continuing at %.1f of %.1f MB", file.name, start / 1e6, file.size / 1e6)
        elif file.size > 1e6:
            logger.info("%s of %s: %.1f MB", file.name, repository, file.size / 1e6)
        with open(part, "r+b" if start else "wb") as stream:
            stream.seek(0, os.SEEK_END)
            http_get(
                url,
                stream,
                resume_size=start,
                headers=build_hf_headers(library_name="ovseg"),
                expected_size=file.size,
                displayed_filename=file.name,
            )
        if file.is_of(part):
            os.replace(part, target)
            return
        actual = file_digest(part)
        part.unlink()
        if not start:  # else the first part may have been damaged: once more, from the start
            break
    raise OvsegError(_wrong(repository, file.name, actual, file.sha256))


def _is_linked(cached: Any, file: RemoteFile, target: Path) -> bool:
    """Return whether the cache of huggingface_hub has a file, which is then linked or copied from there."""
    if not isinstance(cached, str) or os.path.getsize(cached) != file.size or not file.is_of(Path(cached)):
        return False
    with atomic_path(target) as temporary:
        try:
            os.link(os.path.realpath(cached), temporary)
        except OSError:  # another file system
            shutil.copyfile(cached, temporary)
    return True


def _wrong(repository: str, name: str, actual: str, expected: str) -> str:
    want = f"{expected[:16]}... was expected" if expected else "the hub states another checksum"
    return (
        f"{name} of {repository} has the sha256 {actual[:16]}..., but {want}: it was changed or damaged on the way; "
        "try again, and do not use it if that does not help"
    )


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Let one process at a time download a repository; others wait."""
    from filelock import FileLock

    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        yield


@contextlib.contextmanager
def _explained(hub: Any, repository: str, revision: str) -> Iterator[None]:
    """Convert the errors of the hub's client and the network to one sentence."""
    kinds = hub.errors
    try:
        yield
    except OvsegError:
        raise
    except kinds.GatedRepoError as error:
        raise OvsegError(
            f"{repository} is given only to those who accept its terms: accept them on its page on the hub, and log in "
            "with `hf auth login`"
        ) from error
    except kinds.RepositoryNotFoundError as error:
        raise OvsegError(
            f"there is no {repository} on the Hugging Face hub, or it is private: check the name, or log in with "
            "`hf auth login`"
        ) from error
    except kinds.RevisionNotFoundError as error:
        raise OvsegError(f"{repository} has no revision {shown(revision)}: give a branch, tag or commit") from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):  # the disk: see explained_writing
            raise
        raise _unreachable(repository, error) from error
    except Exception as error:  # of the HTTP library, which differs between versions
        raise _unreachable(repository, error) from error


def _unreachable(repository: str, error: Exception) -> OvsegError:
    return OvsegError(
        f"{repository} cannot be fetched from the Hugging Face hub ({reason_of(error)}): check the network and run it "
        "again, which continues where it stopped, or copy the folder from a machine that has it"
    )
