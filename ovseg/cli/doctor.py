"""``ovseg doctor``: what is installed, what it runs on, and what is wrong with it; to be pasted into reports."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

import ovseg
from ovseg.environment.packages import Packages, installed_packages

LONGEST = 120.0  # seconds that libraries may take to import
_NAMES = ("torchvision", "open_clip_torch", "numpy", "pillow", "opencv-python-headless", "supervision", "transformers")


def doctor() -> None:
    """Print versions, devices, caches, fonts and known conflicts, to be pasted into a report.

    The exit status is 1 if something is wrong.
    """
    packages = installed_packages()
    _print(_about_files(packages))  # at once; libraries take seconds
    answers, ended = probe()
    _print(_about_libraries(answers))
    problems = [*packages.problems, *_problems(answers, ended)]
    print()
    for number, problem in enumerate(problems, start=1):
        print(_short(f"problem {number}: {problem}"))
    if not problems:
        print("no problems found")
    raise typer.Exit(1 if problems else 0)


def probe(longest: float = LONGEST) -> tuple[dict[str, Any], str]:
    """Import the libraries in a process of its own.

    Returns:
        The answer of each part of :mod:`ovseg.cli.doctor_probe`: a text where it failed; and, if the process did not
        end well, how it ended, else "".
    """
    command = [sys.executable, "-m", "ovseg.cli.doctor_probe"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=longest, encoding="utf-8")
        output, ended = run.stdout, "" if run.returncode == 0 else f"ended with status {run.returncode}"
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ended = f"took longer than {longest:.0f} seconds"
    answers = {}
    for line in output.splitlines():
        try:
            part, answer = json.loads(line)
        except ValueError:  # what a library prints
            continue
        answers[part] = answer
    return answers, ended


def _print(lines: Sequence[tuple[str, str]]) -> None:
    for title, text in lines:
        print(_short(f"{title:<12} {text}"), flush=True)


def _about_files(packages: Packages) -> list[tuple[str, str]]:
    """Return titles and texts of what is known without importing a library."""
    place = Path(ovseg.__file__).parent
    kind = "clone" if (place.parent / "pyproject.toml").is_file() else "installed"
    versions = ", ".join(f"{name} {packages.versions[name]}" for name in _NAMES if name in packages.versions)
    extras = [f"{extra.name} {'no' if extra.lacks else 'yes'}" for extra in packages.extras]
    return [
        ("ovseg", f"{ovseg.__version__}, {kind}, {place}"),
        ("Python", f"{platform.python_version()}, {sys.executable}"),
        ("system", f"{platform.platform()}, {os.cpu_count()} CPUs{_memory()}"),
        ("packages", versions or "unknown"),
        ("extras", ", ".join(extras) or "unknown"),
        *((f"{name} cache", text) for name, text in _caches()),
    ]


def _about_libraries(answers: dict[str, Any]) -> list[tuple[str, str]]:
    """Return titles and texts of the answers of :func:`probe`."""
    torch, detectron2, fonts = (answers.get(part, "unknown") for part in ("torch", "detectron2", "fonts"))
    if isinstance(torch, dict):
        build = f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built for the CPU"
        devices = ", ".join(torch["devices"]) or "no GPU: runs on the CPU"
        torch = f"{torch['version']}, {build}; {devices}; {torch['threads']} threads"
    if isinstance(detectron2, dict):
        detectron2 = f"{detectron2['version']}, {detectron2['kind']}, {detectron2['place']}"
    if isinstance(fonts, list):
        fonts = "no font for " + ", ".join(fonts) + ": drawn as boxes (INSTALL.md, Fonts)" if fonts else "all scripts"
    return [("PyTorch", torch), ("Detectron2", detectron2), ("fonts", fonts)]


def _problems(answers: dict[str, Any], ended: str) -> list[str]:
    """Return what is wrong with the libraries, with a remedy each."""
    found = []
    torch, detectron2, opencv = (answers.get(part) for part in ("torch", "detectron2", "opencv"))
    if isinstance(torch, str):
        found.append(f"PyTorch: {torch}: run `pip install --force-reinstall torch torchvision`")
    elif torch and not torch["devices"] and shutil.which("nvidia-smi"):
        cause = "its driver may be older than PyTorch's CUDA" if torch["cuda"] else "this PyTorch is built for the CPU"
        found.append(f"there is an NVIDIA driver, and PyTorch finds no GPU: {cause} (INSTALL.md, GPU)")
    if isinstance(detectron2, str) and not isinstance(torch, str):
        missing = detectron2 == "no module detectron2"
        remedy = "run `ovseg install-detectron2`"
        found.append(
            f"Detectron2 is not installed, which models and training need: {remedy}"
            if missing
            else f"Detectron2 {detectron2}: `pip uninstall detectron2`, then {remedy}"
        )
    if isinstance(opencv, str):
        found.append(f"OpenCV {opencv}: run `pip install --force-reinstall opencv-python-headless`")
    if ended:
        last = list(answers)[-1] if answers else "nothing"
        found.append(
            f"the process that imports libraries {ended}, after {last}: reinstall what comes next, or report it"
        )
    for name, text in _caches():
        if "not writable" in text:
            found.append(f"the {name} cache is {text}: set {'OVSEG_CACHE' if name == 'ovseg' else 'HF_HOME'}")
    return found


def _caches() -> list[tuple[str, str]]:
    """Return the name and description of each cache folder."""
    from ovseg.io.files import cache_dir

    hub = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    return [("ovseg", _folder(cache_dir())), ("hub", _folder(hub.expanduser()))]


def _folder(path: Path) -> str:
    existing = next((place for place in (path, *path.parents) if place.exists()), Path("/"))
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    free = shutil.disk_usage(existing).free / 2**30
    return f"{path}, {'' if path.exists() else 'empty, '}{'' if writable else 'not writable, '}{free:.0f} GiB free"


def _memory() -> str:
    try:
        return f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory"
    except (AttributeError, ValueError, OSError):  # not on Windows
        return ""


def _short(text: str) -> str:
    """Return a text with the home folder as ~, as reports are pasted."""
    home = str(Path("~").expanduser())
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text
