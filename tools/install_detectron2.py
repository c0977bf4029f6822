#!/usr/bin/env python3
"""Install Detectron2 into the environment of the running Python.

    python tools/install_detectron2.py                   # like --source pypi, unless `import detectron2` works
    python tools/install_detectron2.py --source pypi     # Detectron2 0.6 in pure Python, no compiler needed
    python tools/install_detectron2.py --sdist FILE      # the same from a downloaded file
    python tools/install_detectron2.py --source git      # the official repository, compiled on this machine

If a source is named and another build is installed, that build is replaced.

The pure-Python build takes the source distribution ``pb1-detectron2==0.6``: Detectron2 0.6's Python files without
its C++. pip refuses it (an extra in its metadata is a URL), so ``unearth`` downloads it; its checksum is verified, it
is patched for current libraries (``detectron2_patches.py``), and a wheel named ``detectron2`` is built and installed.
The few compiled operators (deformable convolution, rotated boxes) raise a clear error when they are used.

This script is independent of ovseg: it needs torch, and for the pure-Python build ``unearth``, ``build`` and
``setuptools``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2_patches import MOVED_FOLDERS, NEW_FILES, PATCHES, REPLACED_FILES, Patch

SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
PURE_PYTHON_MARK = ("utils", "missing_ops.py")  # not in the official repository
GIT_URL = "https://github.com/facebookresearch/detectron2.git"
GIT_COMMIT = "e0ec4e189d438848521aee7926f9900e114229f5"


class InstallError(Exception):
    """Detectron2 cannot be installed; the message says why and what to do."""


def installed_detectron2() -> tuple[str, str]:
    """Run ``import detectron2`` in a fresh interpreter.

    Returns:
        (``"ok"``, where and which version), (``"missing"``, "") or (``"broken"``, the import's last error line).
    """
    code = "import detectron2; print(detectron2.__version__, 'in', *detectron2.__path__)"
    with tempfile.TemporaryDirectory() as empty:  # a folder `detectron2` in the working folder must not be found
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=empty)
    if answer.returncode == 0:
        return "ok", answer.stdout.strip()
    error = (answer.stderr.strip().splitlines() or ["no error message"])[-1]
    if error == "ModuleNotFoundError: No module named 'detectron2'":
        return "missing", ""
    return "broken", error


def installed_source() -> str:
    """Return "pypi" if the installed Detectron2 is the pure-Python build, else "git"."""
    places = importlib.util.find_spec("detectron2").submodule_search_locations
    return "pypi" if any(Path(place, *PURE_PYTHON_MARK).is_file() for place in places) else "git"


def require_modules(names: Sequence[str], purpose: str) -> None:
    """Raise :class:`InstallError` if one of the modules ``names`` cannot be imported."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InstallError(f"{purpose} needs {', '.join(missing)}: run `pip install {' '.join(missing)}` first")


def run(command: Sequence[str], failure: str, env: dict[str, str] | None = None) -> None:
    """Run a command, showing its output only when it fails.

    Raises:
        InstallError: ``failure`` and the end of the command's output.
    """
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    if result.returncode != 0:
        tail = "\n".join(result.stdout.strip().splitlines()[-15:])
        raise InstallError(f"{failure}\n  command: {' '.join(command)}\n{tail}")


def download_sdist(folder: Path) -> Path:
    """Download :data:`SDIST` into ``folder`` with unearth, from the index that pip or uv is configured to use."""
    require_modules(["unearth"], "downloading Detectron2's source")
    command = [sys.executable, "-m", "unearth", "--no-binary", "--download", str(folder)]
    index = next(filter(None, map(os.environ.get, ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"))), None)
    if index:
        command += ["--index-url", index]
    run(
        [*command, SDIST],
        f"cannot download {SDIST}: without a network, download that file elsewhere and give it with --sdist FILE",
    )
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"downloading {SDIST} gave {len(archives)} archives instead of one: try again")
    return archives[0]


def verify_checksum(archive: Path, sha256: str) -> None:
    """Raise :class:`InstallError` unless ``archive`` is the file that the patches were written for."""
    if not archive.is_file():
        raise InstallError(f"no such file: {archive}")
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != sha256:
        raise InstallError(
            f"{archive} is not the expected {SDIST} source (sha256 {actual}, expected {sha256}): download it again"
        )


def unpack(archive: Path, folder: Path) -> Path:
    """Extract ``archive`` into ``folder`` and return its single top folder.

    Raises:
        InstallError: a member is a link or a device, or would be written outside ``folder``.
    """
    folder = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = (folder / member.name).resolve().is_relative_to(folder)
            if not inside or not (member.isfile() or member.isdir()):
                raise InstallError(f"{archive} contains an unsafe entry, {member.name!r}: it was not extracted")
        # the oldest patch releases of Python 3.10 and 3.11 have no filters; the check above stands alone there
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    tops = [path for path in folder.iterdir() if path.is_dir()]
    if len(tops) != 1:
        raise InstallError(f"{archive} holds {len(tops)} top folders instead of one")
    return tops[0]


def apply_patches(tree: Path, patches: Sequence[Patch]) -> None:
    """Apply ``patches`` to the files below ``tree``.

    Raises:
        InstallError: a file is missing, or a text occurs more or less often than its patch declares.
    """
    for patch in patches:
        path = tree / patch.file
        if not path.is_file():
            raise InstallError(f"cannot patch {patch.file}: the file is not in the source")
        text = path.read_text(encoding="utf-8")
        found = text.count(patch.old)
        if found != patch.count:
            raise InstallError(
                f"cannot patch {patch.file}: {patch.old!r} occurs {found} times, expected {patch.count} ({patch.why})"
            )
        path.write_text(text.replace(patch.old, patch.new), encoding="utf-8")


def prepare_tree(tree: Path) -> None:
    """Modify the unpacked source so that it builds a pure-Python ``detectron2`` wheel."""
    apply_patches(tree, PATCHES)
    for name in REPLACED_FILES:
        (tree / name).unlink()
    for source, target in MOVED_FOLDERS.items():
        shutil.move(tree / source, tree / target)
    for name, text in NEW_FILES.items():
        (tree / name).write_text(text, encoding="utf-8")


def build_wheel(tree: Path, folder: Path) -> Path:
    """Build the wheel of ``tree`` into ``folder`` with the installed packages, without a network."""
    require_modules(["build", "setuptools"], "building Detectron2's wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(tree)]
    run(command, "building Detectron2's wheel failed")
    return next(folder.glob("detectron2-*.whl"))


def installer() -> list[str]:
    """Return the start of a command that installs into the running environment: uv's if it is available, else pip's.

    Raises:
        InstallError: neither uv nor pip is available.
    """
    again = ["--reinstall-package", "detectron2"]
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *again]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, *again]
    if importlib.util.find_spec("pip") is not None:
        again = ["--force-reinstall", "--no-deps"] if importlib.util.find_spec("detectron2") else []
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *again]
    raise InstallError("there is neither uv nor pip: put uv on the PATH or run `python -m ensurepip`, then this again")


def install_pure_python(sdist: Path | None) -> None:
    """Build the pure-Python wheel from ``sdist`` (None: download it) and install it."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        work = Path(name)
        downloads, source, wheels = work / "download", work / "source", work / "wheel"
        for folder in (downloads, source, wheels):
            folder.mkdir()
        archive = sdist or download_sdist(downloads)
        verify_checksum(archive, SDIST_SHA256)
        tree = unpack(archive, source)
        prepare_tree(tree)
        run([*installer(), str(build_wheel(tree, wheels))], "installing Detectron2's wheel failed")


def install_official() -> None:
    """Compile and install the official repository at :data:`GIT_COMMIT`."""
    if shutil.which("git") is None:
        raise InstallError("--source git needs git: install it, or use --source pypi")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise InstallError(f"--source git compiles C++ and finds no {compiler}: install g++, or use --source pypi")
    require_modules(["setuptools", "wheel"], "compiling Detectron2")
    quiet_git = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    run(
        ["git", "-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=20", "ls-remote", GIT_URL, "HEAD"],
        f"cannot reach {GIT_URL}: check the network or proxy, or use --source pypi",
        env=quiet_git,
    )
    print(f"compiling Detectron2 at {GIT_COMMIT[:12]} (a minute or two) ...", flush=True)
    requirement = f"detectron2 @ git+{GIT_URL}@{GIT_COMMIT}"
    run([*installer(), "--no-build-isolation", requirement], "compiling Detectron2 failed", env=quiet_git)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Install Detectron2 into this environment, if it is not there.")
    parser.add_argument(
        "--source",
        choices=("pypi", "git"),
        help="pypi: 0.6 in pure Python, no compiler; git: the official repository, compiled on this machine "
        "(default: the installed one, else pypi)",
    )
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="the downloaded pb1-detectron2-0.6.tar.gz")
    args = parser.parse_args(argv)
    if args.sdist and args.source == "git":
        parser.error("--sdist goes with --source pypi")
    if args.sdist:
        args.source = "pypi"
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Install Detectron2 according to the command line.

    Raises:
        InstallError: the installation is not possible.
    """
    args = parse_args(argv)
    state, details = installed_detectron2()
    if state == "ok" and args.source in (None, installed_source()):
        print(f"Detectron2 is installed already: {details}")
        return
    if state == "broken":
        raise InstallError(
            f"a Detectron2 is installed but does not import ({details}): uninstall it "
            "(`pip uninstall detectron2`) or install what it lacks, then run this again"
        )
    require_modules(["torch"], "Detectron2")
    if args.source == "git":
        install_official()
    else:
        install_pure_python(args.sdist)
    state, details = installed_detectron2()
    if state != "ok":
        raise InstallError(f"Detectron2 was installed but does not import: {details}")
    print(f"installed Detectron2 {details}")


if __name__ == "__main__":
    try:
        main()
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
