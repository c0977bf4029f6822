"""Documents: links, pages of the site, generated pages and figures, the notebook."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ovseg.checkpoint.packaged import FILES, has_packaged
from tests.scripts import load_script

REPO = Path(__file__).parents[1]
NOTEBOOK = REPO / "docs" / "notebooks" / "segment_photographs.ipynb"
PAGES = [*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *(REPO / name / "README.md" for name in ("datasets", "tools"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for path, anchor in LINK.findall(text):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}, which does not exist"
        if anchor and target.suffix == ".md":
            assert anchor[1:] in anchors(target), f"{page.name} links to {path}{anchor}, which {target.name} lacks"


def test_every_page_is_in_the_navigation_of_the_site():
    def leaves(item):
        for entry in item if isinstance(item, list) else item.values():
            yield from [entry] if isinstance(entry, str) else leaves(entry)

    listed = list(leaves(yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    pages = {path.relative_to(REPO / "docs").as_posix() for path in (REPO / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(set(listed))
    assert pages | {NOTEBOOK.relative_to(REPO / "docs").as_posix()} <= set(listed)


@pytest.mark.parametrize("tool", ["draw_systems", "write_commands"])
def test_generated_files_are_up_to_date(tool):
    load_script(f"tools/{tool}.py").main(["--check"])


def test_images_and_outputs_are_small():
    images = [path for path in (REPO / "docs").rglob("*") if path.suffix in {".jpg", ".png", ".svg"}]
    assert sum(path.stat().st_size for path in images) < 1.5e6
    assert NOTEBOOK.stat().st_size < 300e3


def test_the_notebook_has_clean_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not any(output.get("name") == "stderr" or output["output_type"] == "error" for output in outputs)


def test_the_notebook_runs(monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("skimage"), pytest.importorskip("sklearn")
    if not all(map(has_packaged, FILES)):
        pytest.skip("needs ovseg[photo,hed]")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    nbclient.NotebookClient(notebook, timeout=900, startup_timeout=300, kernel_name="python3").execute()
    after = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert printed(after[1]) == printed(before[1])  # the words and shares of the first photograph


def printed(outputs: list) -> str:
    """Return what a cell prints."""
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
