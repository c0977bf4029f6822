from __future__ import annotations

from pathlib import Path

import evaluation_standin as standin
import pytest


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Folder of the registered stand-in data set."""
    standin.make_images(tmp_path)
    standin.register(tmp_path)
    return tmp_path
