import pytest

from tests.parity import fixture


def recording_of(load):
    """Return a fixture with the recording that ``load`` reads, whose comparisons are summed up at the end."""

    @pytest.fixture(scope="session")
    def recording():
        loaded = load()
        yield loaded
        print(f"\nparity, {loaded.report()}")

    return recording


parity = recording_of(fixture.load_ovseg)
scan_parity = recording_of(fixture.load_scan)
zegformer = recording_of(fixture.load_zegformer)
maskclip_parity = recording_of(fixture.load_maskclip)
simbaseline_parity = recording_of(fixture.load_simbaseline)
