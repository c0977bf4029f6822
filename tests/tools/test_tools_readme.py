from __future__ import annotations

import re
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"


def test_the_table_lists_every_tool_and_no_other():
    listed = re.findall(r"^\| `(\w+\.py)` \|", (TOOLS / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in TOOLS.glob("*.py"))
