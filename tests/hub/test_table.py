"""The table of models: complete, honest, and consistent with the files that come with the package."""

from __future__ import annotations

import pytest

from ovseg.checkpoint.packaged import FILES as PACKAGED
from ovseg.config import load_cfg
from ovseg.config.files import CONFIGS
from ovseg.errors import OvsegError
from ovseg.hub.card import UNKNOWN, ModelCard
from ovseg.hub.fetch import COMMIT, NAME
from ovseg.hub.table import choose, find, is_model, models
from ovseg.io.files import file_digest
from ovseg.io.shipped import shipped

ROWS = list(models().values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row(row):
    cfg = load_cfg(CONFIGS / row.config, row.opts)
    assert row.licence and row.system and row.summary and row.source and row.files
    assert row.figures or row.protocol.startswith("no figure")
    assert row.permissive == ("NC" not in row.licence)
    for file in row.files:
        assert sum(bool(place) for place in (file.hub, file.path, file.package, file.page)) == 1
        assert all(len(digest) == 64 for digest in file.sha256.values())
        assert not file.hub or (NAME.fullmatch(file.hub) and file.wanted and file.key)
        assert not file.revision or COMMIT.fullmatch(file.revision)
        assert not file.package or file.sha256 == PACKAGED[file.package]["sha256"]
        assert ("NC" in file.licence) <= (not row.permissive)
        if file.path:
            folder, _, below = file.path.partition("/")
            path = shipped("weights") / below if folder == "weights" else CONFIGS.parent / file.path
            path = path if path.is_file() else shipped("weights").parent / file.path
            assert path.stat().st_size == file.size and file_digest(path) == file.sha256[path.name]
            assert folder != "weights" or path.name in (cfg.MODEL.WEIGHTS + cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS)


def test_names():
    assert find("photo").place == "package" and find("toy-scan").place == "here"
    with pytest.raises(OvsegError, match="there is no model 'sam-l-clip': did you mean sam-l-clip-l or"):
        find("sam-l-clip")
    assert all(map(is_model, ("auto", "hf-hub:a/b", "sam-l-clip-l", "sam-l-clp-l", str(CONFIGS))))
    assert not any(map(is_model, ("photo", "scan_vitL_demo", str(CONFIGS / "photo.yaml"), "x.yaml")))


@pytest.mark.parametrize(
    ("device", "memory", "extras", "name"),
    [
        ("cpu", 64, True, "dense-clip-b"),
        ("mps", 64, True, "dense-clip-b"),
        ("cuda", 80, True, "sam-l-clip-l"),
        ("cuda", 10, True, "sam-b-clip-l"),
        ("cuda", 6, True, "sam-b-dense-clip-b"),
        ("cuda", 4, True, "dense-clip-b"),
        ("cuda", 80, False, "dense-clip-b"),
    ],
)
def test_auto_is_permissive_and_fits(device, memory, extras, name):
    row = choose(device, memory, extras)
    assert row.name == name and row.permissive


def test_a_card_is_read_as_it_was_written(tmp_path):
    card = ModelCard(name="a | b", licence="CC-BY-NC-4.0", data="x\ny: [", figures={"mIoU": 1.5})
    (tmp_path / "README.md").write_text(card.text({"config.yaml": (3, "0" * 64)}))
    assert ModelCard.read(tmp_path / "README.md") == card
    assert "license: cc-by-nc-4.0\n" in (tmp_path / "README.md").read_text()
    assert "license: other\nlicense_name: SAM License\n" in ModelCard(licence="SAM License").text({})
    assert "license: unknown\n" in ModelCard().text({}) and ModelCard().data == UNKNOWN
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    assert ModelCard.read(tmp_path / "README.md") is None
