from __future__ import annotations

import pytest

from tests.engine import toy


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine_dataset")
    toy.write_dataset(folder)
    return folder


@pytest.fixture
def dataset(dataset_folder):
    """Registers the test's data set and gives its records."""
    records = toy.write_dataset_once(dataset_folder)
    toy.register(records)
    return records
