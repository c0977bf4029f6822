"""Versions of the software that results depend on."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import detectron2
import torch

import ovseg

_PACKAGES = {
    **{"ovseg": "ovseg", "torch": "torch", "torchvision": "torchvision", "open_clip": "open_clip_torch"},
    **{"numpy": "numpy", "pillow": "pillow", "opencv": "opencv-python-headless"},  # decoding, resizing
}


def versions() -> dict[str, str | None]:
    """Return the versions of Python and the packages that results depend on; None if not installed as a package."""
    found: dict[str, str | None] = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # includes the build, CPU or CUDA
    return found


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the checkout that holds this package, with "+changes" if files differ; None without one."""
    package = Path(ovseg.__file__).parent
    # in another project's checkout (its .venv, say) the package's files are not tracked
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    return commit and commit + ("+changes" if _git(package, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
