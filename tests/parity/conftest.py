import pytest

from tests.parity import fixture


@pytest.fixture(scope="session")
def parity():
    """OVSeg's recording."""
    recording = fixture.load_ovseg()
    yield recording
    print(f"\nparity, {recording.report()}")


@pytest.fixture(scope="session")
def scan_parity():
    """SCAN's recording."""
    recording = fixture.load_scan()
    yield recording
    print(f"\nparity, {recording.report()}")
