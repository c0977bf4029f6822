from __future__ import annotations

import inspect

import pytest

from ovseg.config import defaults, ovsegmentor
from tests.scripts import load_script


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/write_reference.py")


def test_every_key_has_a_meaning(tool):
    described = [row for part in (defaults, ovsegmentor) for row in tool.described_keys(inspect.getsource(part))]
    assert sorted(key for _, key, _ in described) == sorted(defaults.DEFAULTS)
    assert [key for section, key, comment in described if not (section and comment)] == []


def test_the_page_is_up_to_date(tool):
    text = tool.reference()
    assert '| `MODEL.CLIP_ADAPTER.PRECISION` | `"fp32"` | *new*. fp32, bf16' in text
    assert tool.PAGE.read_text(encoding="utf-8") == text, "run python tools/write_reference.py"
    tool.main(["--check"])


def test_a_page_that_is_out_of_date(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "PAGE", tmp_path / "page.md")
    with pytest.raises(SystemExit, match="out of date"):
        tool.main(["--check"])
    tool.main([])
    tool.main(["--check"])
