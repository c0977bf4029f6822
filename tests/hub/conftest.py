"""The stand-in for the hub, and a cache folder of each test."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.hub.stand_in import COMMIT, Hub, serving

SIZE = 3_000_000


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    """A hub with the repository ``org/model``, which this process may ask."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "library"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what is lost at most when a connection breaks
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits before it tries again
    weights = random.Random(0).randbytes(SIZE)
    with serving({"org/model": {"config.json": b"{}", "model.safetensors": weights, "other.bin": b"x"}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def write_library_cache(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files of ``org/model`` as huggingface_hub caches them, for the fixture ``hub``; return their snapshot."""
    repository = folder / "library" / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    for place in (snapshot, repository / "refs"):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot
