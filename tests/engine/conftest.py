from __future__ import annotations

import pytest
import torch

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


@pytest.fixture(scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
