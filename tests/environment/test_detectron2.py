from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovseg.environment import detectron2 as tool
from ovseg.errors import OvsegError

TOOLS = Path(__file__).parents[2] / "tools"


def write_tree(folder: Path, patches, moved, replaced) -> None:
    """A source tree of just the texts that the patches look for, each as often as declared."""
    for patch in patches:
        path = folder / patch.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"# a line\n{patch.old}\n" * patch.count)
    for source in moved:
        (folder / source).mkdir(parents=True)
        (folder / source / "__init__.py").write_text("")
    for name in replaced:
        (folder / name).write_text("raise SystemExit('must not run')")
    (folder / "detectron2" / "utils").mkdir(parents=True, exist_ok=True)
    (folder / "LICENSE").write_text("")


def tar_gz(path: Path, members: dict[str, bytes], link: tuple[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(info)
    return path


def test_every_patch_applies_to_the_text_it_declares(tmp_path):
    write_tree(tmp_path, tool.PATCHES, tool.MOVED_FOLDERS, tool.REPLACED_FILES)
    tool.prepare_tree(tmp_path)

    for patch in tool.PATCHES:
        text = (tmp_path / patch.file).read_text()
        assert patch.new in text
        if patch.old not in patch.new:
            assert patch.old not in text
    assert not any((tmp_path / name).exists() for name in tool.REPLACED_FILES)
    assert all((tmp_path / name / "__init__.py").is_file() for name in tool.MOVED_FOLDERS.values())
    assert 'name = "detectron2"' in (tmp_path / "pyproject.toml").read_text()


@pytest.mark.parametrize("occurrences", [0, 1, 3])
def test_patch_that_occurs_another_number_of_times_is_an_error(tmp_path, occurrences):
    (tmp_path / "a.py").write_text("x = np.bool\n" * occurrences)
    patch = tool.Patch("a.py", "np.bool", "bool", 2, "NumPy")
    with pytest.raises(OvsegError, match=rf"a\.py: 'np\.bool' occurs {occurrences} times, expected 2"):
        tool.apply_patches(tmp_path, [patch])
    assert (tmp_path / "a.py").read_text() == "x = np.bool\n" * occurrences


def test_patch_of_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(OvsegError, match=r"gone\.py"):
        tool.apply_patches(tmp_path, [tool.Patch("gone.py", "a", "b", 1, "")])


def test_checksum(tmp_path):
    file = tmp_path / "source.tar.gz"
    file.write_bytes(b"source")
    tool.verify_checksum(file, hashlib.sha256(b"source").hexdigest())
    with pytest.raises(OvsegError, match="not the expected"):
        tool.verify_checksum(file, tool.SDIST_SHA256)
    with pytest.raises(OvsegError, match="no such file"):
        tool.verify_checksum(tmp_path / "none.tar.gz", tool.SDIST_SHA256)


def test_unpack_returns_the_top_folder(tmp_path):
    archive = tar_gz(tmp_path / "a.tar.gz", {"top/detectron2/__init__.py": b"x = 1\n"})
    (tmp_path / "out").mkdir()
    tree = tool.unpack(archive, tmp_path / "out")
    assert tree.name == "top"
    assert (tree / "detectron2" / "__init__.py").read_text() == "x = 1\n"


@pytest.mark.parametrize("name", ["../escaped.py", "top/../../escaped.py", "/tmp_of_nobody/escaped.py"])
def test_unpack_refuses_paths_that_leave_the_folder(tmp_path, name):
    archive = tar_gz(tmp_path / "a.tar.gz", {"top/a.py": b"", name: b"evil"})
    (tmp_path / "out").mkdir()
    with pytest.raises(OvsegError, match=r"unsafe entry.*escaped\.py"):
        tool.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "escaped.py").exists()
    assert not list((tmp_path / "out").iterdir())


def test_unpack_refuses_links(tmp_path):
    archive = tar_gz(tmp_path / "a.tar.gz", {"top/a.py": b""}, link=("top/link", "../../secret"))
    (tmp_path / "out").mkdir()
    with pytest.raises(OvsegError, match="unsafe entry"):
        tool.unpack(archive, tmp_path / "out")


def test_does_nothing_where_detectron2_imports():
    """The whole command in this environment, which has Detectron2: no download, no build, no install."""
    result = subprocess.run(
        [sys.executable, str(TOOLS / "install_detectron2.py"), "--sdist", "does-not-exist.tar.gz"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Detectron2 is installed already: ")


def test_wrong_sdist_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "installed_detectron2", lambda: ("missing", ""))
    archive = tar_gz(tmp_path / "a.tar.gz", {"top/setup.py": b"raise SystemExit"})
    with pytest.raises(OvsegError, match="not the expected"):
        tool.install(sdist=archive)


@pytest.mark.parametrize(("source", "replaced"), [(None, False), ("pypi", False), ("git", True)])
def test_a_named_source_replaces_another_build(monkeypatch, source, replaced):
    calls = []
    monkeypatch.setattr(tool, "installed_detectron2", lambda: ("ok", "0.6"))
    monkeypatch.setattr(tool, "installed_source", lambda: "pypi")
    monkeypatch.setattr(tool, "install_official", lambda: calls.append("git"))
    tool.install(source)
    assert bool(calls) == replaced


def test_the_installed_build_is_recognised(tmp_path, monkeypatch):
    (tmp_path / "detectron2" / "utils").mkdir(parents=True)
    (tmp_path / "detectron2" / "__init__.py").touch()
    monkeypatch.setattr(
        tool.importlib.util,
        "find_spec",
        lambda _: SimpleNamespace(submodule_search_locations=[str(tmp_path / "detectron2")]),
    )
    assert tool.installed_source() == "git"
    tree = tmp_path / "detectron2" / "utils" / "missing_ops.py"
    assert f"detectron2/utils/{tree.name}" in tool.NEW_FILES
    tree.touch()
    assert tool.installed_source() == "pypi"


def test_broken_detectron2_is_not_installed_over(monkeypatch):
    monkeypatch.setattr(tool, "installed_detectron2", lambda: ("broken", "ImportError: libtorch.so"))
    with pytest.raises(OvsegError, match=r"does not import \(ImportError: libtorch\.so\).*uninstall"):
        tool.install()


def test_unreachable_git_host_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "installed_detectron2", lambda: ("missing", ""))
    monkeypatch.setattr(tool.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(tool, "GIT_URL", str(tmp_path / "no-repository"))
    with pytest.raises(OvsegError, match=r"cannot reach .*no-repository.*--source pypi"):
        tool.install("git")


def test_git_commit_is_pinned_in_full():
    assert len(tool.GIT_COMMIT) == 40
    assert int(tool.GIT_COMMIT, 16)


def test_missing_compiled_operator_names_itself_and_the_remedy():
    module = types.ModuleType("missing_ops")
    exec(tool.NEW_FILES["detectron2/utils/missing_ops.py"], module.__dict__)
    with pytest.raises(RuntimeError, match=r"'box_iou_rotated'.*--source git"):
        module.missing_ops.box_iou_rotated(None, None)
