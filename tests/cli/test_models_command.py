"""``ovseg models``."""

from __future__ import annotations

import json

import pytest

from ovseg.cli.app import main
from tests.hub.conftest import hub  # noqa: F401 - a fixture


def run(capsys, *words):
    try:
        status = main(["models", *words])
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()


def test_list(capsys):
    status, out, _ = run(capsys)
    assert status == 0 and "photo" in out and "CC-BY-NC-4.0" in out
    status, out, _ = run(capsys, "list", "--permissive", "--json")
    rows = json.loads(out)
    assert {"photo", "sam-l-clip-l", "dense-clip-b"} <= {row["name"] for row in rows}
    assert all("NC" not in row["licence"] for row in rows)


def test_show(capsys):
    status, out, _ = run(capsys, "show", "toy-ovseg")
    assert status == 0 and "sha256 0a3fed7c71b01646" in out and "56.0 / 61.3 / 39.8" in out
    assert json.loads(run(capsys, "show", "toy-ovseg", "--json")[1])["licence"] == "Apache-2.0"
    assert "sha256 unknown here: that which the hub states is verified" in run(capsys, "show", "sam2-clip-l")[1]


def test_download(capsys, hub):  # noqa: F811
    hub.repositories["facebook/sam-vit-base"] = {"config.json": b"{}", "model.safetensors": b"y" * 2000}
    hub.repositories["timm/vit_large_patch14_clip_224.openai"] = {"open_clip_model.safetensors": b"z" * 2000}
    status, out, _ = run(capsys, "download", "sam-b-clip-l")
    assert status == 0 and out.count("sha256") == 3 and "facebook--sam-vit-base" in out
    assert run(capsys, "download", "sam-b-clip-l")[0] == 0 and hub.asked == 2
    assert run(capsys, "download", "sam-b-clip-l", "--update")[0] == 0 and hub.asked == 4 and len(hub.requests) == 3
    status, out, _ = run(capsys, "download", "toy-scan")
    assert status == 0 and "weights/toy/scan.safetensors comes with ovseg" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "`ovseg models show` needs a name: `ovseg models` lists them"),
        (["show", "photoo"], "there is no model 'photoo': did you mean photo?"),
        (["list", "photo"], "`ovseg models list` takes no name: write `ovseg models show photo`"),
        (
            ["download", "scan-vitl"],
            "SCAN.pth (CC-BY-NC-4.0) cannot be fetched from here: get it from the project page",
        ),
        (
            ["download", "toy-ovseg", "--revision", "x"],
            "--revision has no effect with `ovseg models download",
        ),
        (["show", "photo", "--update"], "--update has no effect with `ovseg models show photo`: leave it out"),
        (["download", "hf-hub:x"], "'x' is not a name on the Hugging Face hub: give ORGANISATION/NAME"),
        (["download", "hf-hub:a/b"], "a/b is not on this machine, and HF_HUB_OFFLINE is set"),
        (["frob"], "'frob' is not one of 'list', 'show', 'download'"),
    ],
)
def test_wrong_input(capsys, words, message):
    status, _, err = run(capsys, *words)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1
