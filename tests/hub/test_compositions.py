"""Models of hub files, with tiny random weights from the stand-in: compositions of the table, and saved folders."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save

from ovseg import Segmenter
from ovseg.errors import OvsegError
from ovseg.hub import table
from ovseg.toy import make_scene
from tests.tiny_clip import TINY, adapter_of, tiny_cfg
from tests.tiny_sam import tiny_sam_folder

IMAGE = make_scene(1_000_003).image
WORDS = ["red circle", "grass", "brick"]


def repository(folder: Path) -> dict[str, bytes]:
    """Return the content of the files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tiny(hub, tmp_path, monkeypatch):
    """The table with tiny models in place of those of the hub."""
    adapter = adapter_of(tiny_cfg(tmp_path), MASK_PROMPT_DEPTH=0)
    state = {name: tensor.clone() for name, tensor in adapter.clip_model.state_dict().items() if "mask_emb" not in name}
    clip = {"open_clip_model.safetensors": save(state)}
    for row in table.models().values():
        for file in row.files:
            if file.hub.startswith("timm/"):
                hub.repositories[file.hub] = clip
            elif file.hub:
                kind = "sam2" if "sam2" in file.hub else "sam"
                hub.repositories[file.hub] = repository(tiny_sam_folder(tmp_path / file.hub, kind)) | {"tf.h5": b"x"}
    name = tmp_path / "clip.json"
    name.write_text(json.dumps(TINY))
    small = {
        "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": str(name),
        "MODEL.PROPOSER.SAM.POINTS_PER_SIDE": 4,
        "MODEL.PROPOSER.SAM.IOU_THRESHOLD": 0.0,
        "MODEL.PROPOSER.SAM.STABILITY_THRESHOLD": 0.0,
    }
    rows = {
        row.name: replace(
            row,
            opts=row.opts | (small if row.extra else dict(list(small.items())[:1])),
            files=tuple(replace(file, revision="") for file in row.files),  # the stand-in has one commit
        )
        for row in table.models().values()
        if row.place == "hub"
    }
    monkeypatch.setattr(table, "models", lambda: rows)
    return rows


NAMES = ["sam-l-clip-l", "sam-b-clip-l", "sam2-clip-l", "sam-b-dense-clip-b", "dense-clip-b"]


def test_all_compositions_are_tested(tiny):
    assert list(tiny) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_composition_runs_and_needs_no_network_again(tiny, hub, monkeypatch, name):
    segmenter = Segmenter.from_pretrained(name, device="cpu")
    labels = segmenter(IMAGE, WORDS).label_map
    assert labels.shape == IMAGE.shape[:2] and len(np.unique(labels)) > 1
    assert segmenter.card.licence == tiny[name].licence and segmenter.name == name
    assert not any(file == "tf.h5" for file, _ in hub.requests)  # only what is wanted
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = Segmenter.from_pretrained(name, device="cpu", opts=["INPUT.MIN_SIZE_TEST", segmenter.min_size])
    assert np.array_equal(again(IMAGE, WORDS).label_map, labels)


def test_auto_on_a_cpu(tiny):
    assert Segmenter.from_pretrained("auto", device="cpu").name == "dense-clip-b"


def test_a_saved_folder_on_the_hub(tiny, hub, tmp_path, caplog):
    first = Segmenter.from_pretrained("dense-clip-b", device="cpu")
    with caplog.at_level(logging.WARNING, "ovseg.hub"):
        first.save_pretrained(tmp_path / "saved", words=WORDS)
    assert not [
        record for record in caplog.records if record.levelno >= logging.WARNING
    ]  # the licence is that of the table
    hub.repositories["me/mine"] = repository(tmp_path / "saved") | {"evil.pkl": b"x"}
    second = Segmenter.from_pretrained("hf-hub:me/mine@main", device="cpu")
    assert np.array_equal(second(IMAGE).label_map, first(IMAGE, WORDS).label_map)
    assert second.card == first.card and second.vocabulary.names == tuple(WORDS)
    assert "evil.pkl" not in [file for file, _ in hub.requests]
    with pytest.raises(OvsegError, match="me/mine has no revision 'v2'"):
        Segmenter.from_pretrained("hf-hub:me/mine", revision="v2")
    with pytest.raises(OvsegError, match=r"dense-clip-b.* is not on the hub: leave it out"):
        Segmenter.from_pretrained("dense-clip-b", revision="v2")


def test_a_repository_that_is_no_model_of_ours(tiny):
    with pytest.raises(OvsegError, match=r"org/model on the Hugging Face hub has no file config.yaml"):
        Segmenter.from_pretrained("hf-hub:org/model")
