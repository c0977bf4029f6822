"""docs/systems.md names every registered system and part, and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.modeling import META_ARCH_REGISTRY

import ovseg.meta_arch  # noqa: F401 (registers the systems)
from ovseg.meta_arch.pixel_scores import RENDERINGS
from ovseg.naming import FUSIONS, NAMERS
from ovseg.proposals.views import PROPOSERS

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "systems.md").read_text(encoding="utf-8")
KINDS = {
    "system": META_ARCH_REGISTRY,
    "MODEL.PROPOSER.NAME": PROPOSERS,
    "MODEL.NAMER.NAME": NAMERS,
    "MODEL.FUSION.NAME": FUSIONS,
    "MODEL.RENDERING.NAME": RENDERINGS.items(),
}


def ours(kind: str) -> set[str]:
    """Return the registered names whose code is in this package: other tests register parts of their own."""
    return {name for name, entry in KINDS[kind] if entry.__module__.startswith("ovseg.")}


def listed(kind: str) -> set[str]:
    """Return the names in the first column of the first table whose header begins with a kind."""
    header = kind if kind == "system" else f"`{kind}`"
    rows = re.search(rf"^\| {re.escape(header)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE).group(1)
    return {name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.parametrize("kind", KINDS)
def test_every_registered_part_is_listed_and_no_other(kind):
    assert listed(kind) == ours(kind)


def test_the_configurations_exist():
    patterns = set(re.findall(r"`(configs/[\w/*.]+\.yaml)`", PAGE))
    assert len(patterns) > 5
    assert [pattern for pattern in sorted(patterns) if not list(REPO.glob(pattern))] == []
    named = {path for pattern in patterns for path in REPO.glob(pattern)}
    demos = {"sam_vitB_clip_vitB16", "toy"}  # a free combination; another name of a toy configuration
    assert {path.stem for path in set(REPO.glob("configs/*.yaml")) - named} <= demos


def test_the_command_of_the_matrix_is_right(monkeypatch):
    from tests.scripts import load_script

    tool = load_script("tools/matrix.py")
    for command in re.findall(r"^python tools/matrix\.py ((?:.*\\\n)*.*)", PAGE, re.MULTILINE):
        args = tool.parse(command.replace("\\\n", " ").split())
        assert args.systems and all((REPO / file).is_file() for file in args.systems)
