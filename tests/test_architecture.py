"""The Python blocks of docs/architecture.md, run in order, and the files that its tables name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.naming import NAMERS
from ovseg.proposals.views import PROPOSERS

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with links to the files of the repository that the page uses."""
    for name in ("configs", "weights"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(DatasetCatalog.list()) & {"halves_val"}:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for registry, name in ((PROPOSERS, "Tiles"), (NAMERS, "MeanColor")):
        registry._obj_map.pop(name, None)  # the registries of all tests of this process


def test_the_blocks_run(folder, capsys):
    names: dict = {"__name__": "docs"}
    for block in BLOCKS:
        exec(block, names)  # our own page
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    assert printed["labels of the halves [0]"] == "[2]"
    assert 0 <= float(printed["mIoU"]) <= 100
    assert -100 <= float(printed["kappa"]) <= 100
    assert float(printed["mean accuracy of images"]) == pytest.approx(names["results"]["sem_seg"]["pACC"], abs=0.1)


def test_the_files_that_documents_name_exist():
    pages = [*REPO.glob("docs/*.md"), REPO / "README.md", REPO / "datasets" / "README.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"`((?:ovseg|tests|tools)/[\w/.]*)`", text))
    assert [name for name in sorted(named) if not (REPO / name).exists()] == []
