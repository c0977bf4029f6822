"""Which software made the numbers."""

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
    """Versions of what the numbers depend on; None for what is not installed as a package."""
    found: dict[str, str | None] = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # tells the CPU or CUDA build, too
    return found


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout that this package lies in, with "+changes" if its code differs; None outside of one."""
    package = Path(ovseg.__file__).parent
    # in another project's checkout (its .venv, say) the package's files are not tracked
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    return commit and commit + ("+changes" if _git(package, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
