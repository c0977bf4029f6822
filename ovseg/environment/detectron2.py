"""Installation of Detectron2 into the environment of the running Python.

The pure-Python build takes the source distribution ``pb1-detectron2==0.6``: Detectron2 0.6's Python files without
its C++. pip refuses it (an extra in its metadata is a URL), so ``unearth`` downloads it; its checksum is verified, it
is patched for current libraries (:mod:`ovseg.environment.detectron2_patches`), and a wheel named ``detectron2`` is
built and installed. The few compiled operators (deformable convolution, rotated boxes) raise a clear error when used.

``unearth``, ``build`` and ``setuptools`` are those of the environment; where one is missing, all three are installed
into a temporary folder for the time of the installation. This module needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovseg.environment.detectron2_patches import MOVED_FOLDERS, NEW_FILES, PATCHES, REPLACED_FILES, Patch
from ovseg.errors import OvsegError

SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
PURE_PYTHON_MARK = ("utils", "missing_ops.py")  # not in the official repository
BUILD_TOOLS = ("unearth", "build", "setuptools")
GIT_URL = "https://github.com/facebookresearch/detectron2.git"
GIT_COMMIT = "e0ec4e189d438848521aee7926f9900e114229f5"


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
    """Raise OvsegError if one of the modules ``names`` cannot be imported."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise OvsegError(f"{purpose} needs {', '.join(missing)}: run `pip install {' '.join(missing)}` first")


def run(command: Sequence[str], failure: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command, showing the end of its output on stderr only when it fails.

    Raises:
        OvsegError: ``failure``, when it fails.
    """
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    if result.returncode != 0:
        print(f"  command: {' '.join(command)}", *result.stdout.strip().splitlines()[-15:], sep="\n", file=sys.stderr)
        raise OvsegError(failure)


def build_tools(folder: Path) -> dict[str, str]:
    """Return the variables of processes that use :data:`BUILD_TOOLS`, which are installed into ``folder`` if one lacks.

    Raises:
        OvsegError: they are not installed, and cannot be.
    """
    if all(importlib.util.find_spec(name) is not None for name in BUILD_TOOLS):
        return dict(os.environ)
    advice = f"run `pip install {' '.join(BUILD_TOOLS)}` first, then this again"
    run([*installer(), "--target", str(folder), *BUILD_TOOLS], f"cannot get {' and '.join(BUILD_TOOLS)}: {advice}")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def download_sdist(folder: Path, env: Mapping[str, str]) -> Path:
    """Download :data:`SDIST` into ``folder`` with unearth, from the index that pip or uv is configured to use."""
    command = [sys.executable, "-m", "unearth", "--no-binary", "--download", str(folder)]
    index = next(filter(None, map(os.environ.get, ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"))), None)
    if index:
        command += ["--index-url", index]
    run(
        [*command, SDIST],
        f"cannot download {SDIST}: without a network, download that file elsewhere and give it with --sdist FILE",
        env,
    )
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise OvsegError(f"downloading {SDIST} gave {len(archives)} archives instead of one: try again")
    return archives[0]


def verify_checksum(archive: Path, sha256: str) -> None:
    """Raise OvsegError unless ``archive`` is the file that the patches were written for."""
    if not archive.is_file():
        raise OvsegError(f"no such file: {archive}")
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != sha256:
        raise OvsegError(
            f"{archive} is not the expected {SDIST} source (sha256 {actual}, expected {sha256}): download it again"
        )


def unpack(archive: Path, folder: Path) -> Path:
    """Extract ``archive`` into ``folder`` and return its single top folder.

    Raises:
        OvsegError: a member is a link or a device, or would be written outside ``folder``.
    """
    folder = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = (folder / member.name).resolve().is_relative_to(folder)
            if not inside or not (member.isfile() or member.isdir()):
                raise OvsegError(f"{archive} contains an unsafe entry, {member.name!r}: it was not extracted")
        # the oldest patch releases of Python 3.10 and 3.11 have no filters; the check above stands alone there
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    tops = [path for path in folder.iterdir() if path.is_dir()]
    if len(tops) != 1:
        raise OvsegError(f"{archive} holds {len(tops)} top folders instead of one")
    return tops[0]


def apply_patches(tree: Path, patches: Sequence[Patch]) -> None:
    """Apply ``patches`` to the files below ``tree``.

    Raises:
        OvsegError: a file is missing, or a text occurs more or less often than its patch declares.
    """
    for patch in patches:
        path = tree / patch.file
        if not path.is_file():
            raise OvsegError(f"cannot patch {patch.file}: the file is not in the source")
        text = path.read_text(encoding="utf-8")
        found = text.count(patch.old)
        if found != patch.count:
            raise OvsegError(
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


def build_wheel(tree: Path, folder: Path, env: Mapping[str, str]) -> Path:
    """Build the wheel of ``tree`` into ``folder`` with the installed packages, without a network."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(tree)]
    run(command, "building Detectron2's wheel failed: see above", env)
    return next(folder.glob("detectron2-*.whl"))


def installer() -> list[str]:
    """Return the start of a command that installs into the running environment: uv's if it is available, else pip's.

    Raises:
        OvsegError: neither uv nor pip is available.
    """
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    raise OvsegError("there is neither uv nor pip: put uv on the PATH or run `python -m ensurepip`, then this again")


def replacing(command: Sequence[str]) -> list[str]:
    """Return a command of :func:`installer` that also replaces an installed Detectron2 of the same version."""
    if "uv" in command or Path(command[0]).stem == "uv":
        return [*command, "--reinstall-package", "detectron2"]
    return [*command, *(["--force-reinstall", "--no-deps"] if importlib.util.find_spec("detectron2") else [])]


def install_pure_python(sdist: Path | None) -> None:
    """Build the pure-Python wheel from ``sdist`` (None: download it) and install it."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        work = Path(name)
        tools, downloads, source, wheels = work / "tools", work / "download", work / "source", work / "wheel"
        for folder in (downloads, source, wheels):
            folder.mkdir()
        if sdist:
            verify_checksum(sdist, SDIST_SHA256)
        env = build_tools(tools)
        archive = sdist or download_sdist(downloads, env)
        verify_checksum(archive, SDIST_SHA256)
        tree = unpack(archive, source)
        prepare_tree(tree)
        wheel = build_wheel(tree, wheels, env)
        run([*replacing(installer()), str(wheel)], "installing Detectron2's wheel failed: see above")


def install_official() -> None:
    """Compile and install the official repository at :data:`GIT_COMMIT`."""
    if shutil.which("git") is None:
        raise OvsegError("--source git needs git: install it, or use --source pypi")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise OvsegError(f"--source git compiles C++ and finds no {compiler}: install g++, or use --source pypi")
    require_modules(["setuptools", "wheel"], "compiling Detectron2")
    quiet_git = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    run(
        ["git", "-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=20", "ls-remote", GIT_URL, "HEAD"],
        f"cannot reach {GIT_URL}: check the network or proxy, or use --source pypi",
        quiet_git,
    )
    print(f"compiling Detectron2 at {GIT_COMMIT[:12]} (a minute or two) ...", flush=True)
    requirement = f"detectron2 @ git+{GIT_URL}@{GIT_COMMIT}"
    run(
        [*replacing(installer()), "--no-build-isolation", requirement],
        "compiling Detectron2 failed: see above",
        quiet_git,
    )


def install(source: str | None = None, sdist: Path | None = None) -> None:
    """Install Detectron2, and print what was done.

    Args:
        source: ``"pypi"`` for 0.6 in pure Python, ``"git"`` for the official repository, compiled here, which replaces
            another build that is installed; None for the installed one, or ``"pypi"`` if there is none.
        sdist: the downloaded source distribution; with ``source`` None or ``"pypi"``.

    Raises:
        OvsegError: the installation is not possible.
    """
    if sdist and source == "git":
        raise OvsegError("--sdist is the source of --source pypi: leave one of them out")
    source = "pypi" if sdist else source
    state, details = installed_detectron2()
    if state == "ok" and source in (None, installed_source()):
        print(f"Detectron2 is installed already: {details}")
        return
    if state == "broken":
        raise OvsegError(
            f"a Detectron2 is installed but does not import ({details}): uninstall it "
            "(`pip uninstall detectron2`) or install what it lacks, then run this again"
        )
    require_modules(["torch"], "Detectron2")
    if source == "git":
        install_official()
    else:
        install_pure_python(sdist)
    state, details = installed_detectron2()
    if state != "ok":
        raise OvsegError(f"Detectron2 was installed but does not import: {details}")
    print(f"installed Detectron2 {details}")
