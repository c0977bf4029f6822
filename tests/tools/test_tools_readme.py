from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"


def test_the_table_lists_every_tool_and_no_other():
    listed = re.findall(r"^\| `(\w+\.py)` \|", (TOOLS / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in TOOLS.glob("*.py"))


@pytest.mark.parametrize("script", sorted([*ROOT.glob("*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.py")]))
def test_ovseg_comes_before_detectron2(script):
    """Detectron2's import warns of functions that PyTorch deprecates; ovseg's, which comes first, keeps these quiet."""
    imports = re.findall(r"^(?:from|import) (ovseg|detectron2)\b", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert imports[:1] != ["detectron2"]
