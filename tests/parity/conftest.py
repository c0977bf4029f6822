import pytest

from tests.parity import fixture


@pytest.fixture(scope="session")
def parity():
    """Return the recording of OVSeg."""
    recording = fixture.load_ovseg()
    yield recording
    print(f"\nparity, {recording.report()}")


@pytest.fixture(scope="session")
def scan_parity():
    """Return the recording of SCAN."""
    recording = fixture.load_scan()
    yield recording
    print(f"\nparity, {recording.report()}")


@pytest.fixture(scope="session")
def zegformer():
    """Return the recording of ZegFormer."""
    recording = fixture.load_zegformer()
    yield recording
    print(f"\nparity, {recording.report()}")


@pytest.fixture(scope="session")
def maskclip_parity():
    """Return the recording of MaskCLIP."""
    recording = fixture.load_maskclip()
    yield recording
    print(f"\nparity, {recording.report()}")


@pytest.fixture(scope="session")
def simbaseline_parity():
    """Return the recording of SimBaseline."""
    recording = fixture.load_simbaseline()
    yield recording
    print(f"\nparity, {recording.report()}")
