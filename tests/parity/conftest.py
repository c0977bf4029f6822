import pytest

from tests.parity import fixture


@pytest.fixture(scope="session")
def parity():
    yield fixture.load()
    if fixture.COMPARED:
        name, error = max(fixture.COMPARED, key=lambda item: item[1])
        print(
            f"\nparity: {len(fixture.COMPARED)} float arrays compared, largest relative difference {error:.2e} ({name})"
        )
