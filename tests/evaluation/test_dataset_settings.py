"""Several data sets in one run, each with its own settings, and the model as it was afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from ovseg.checkpoint import load_weights
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.dataset_settings import dataset_settings
from tests.tiny_model import make_tiny_model

FIRST, SECOND = "settings_first", "settings_second"
THR, WEIGHT = "MODEL.CLIP_ADAPTER.MASK_THR", "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT"
ENTRIES = f"{{{FIRST}: {{MASK_THR: 0.1, CLIP_ENSEMBLE_WEIGHT: 0.3}}, {SECOND}: {{CLIP_ENSEMBLE_WEIGHT: 0.1}}}}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Configuration file and model; the data sets are registered."""
    folder = tmp_path_factory.mktemp("settings")
    rng = np.random.default_rng(3)
    image, labels = (folder / f"{kind}.png" for kind in ("image", "labels"))
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(image)
    Image.fromarray(rng.integers(0, 4, (64, 64), dtype=np.uint8)).save(labels)
    records = [{"file_name": str(image), "sem_seg_file_name": str(labels), "height": 64, "width": 64}]
    for name in (FIRST, SECOND):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c", "d"], ignore_label=255, evaluator_type="sem_seg")
    config, weights = make_tiny_model(folder)
    model = build_model(load_cfg(config)).eval()
    load_weights(model, weights)
    with torch.no_grad():  # clear-cut masks: with soft ones everywhere, one class would paint all pixels
        model.sem_seg_head.pixel_decoder.mask_features.weight.mul_(400)
    yield config, model
    for name in (FIRST, SECOND):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluate(tiny, folder: Path, datasets: Sequence[str], *opts: object) -> dict[str, dict]:
    """What is written in results.json, by data set."""
    config, model = tiny
    fixed = ["OUTPUT_DIR", str(folder), "DATASETS.TEST", tuple(datasets), "DATALOADER.NUM_WORKERS", 0]
    runner.evaluate_all(load_cfg(config, [*fixed, *opts]), model)
    return {name: json.loads((folder / "inference" / name / "results.json").read_text()) for name in datasets}


def test_each_data_set_is_evaluated_with_its_own(tiny, tmp_path, capsys):
    _, model = tiny
    former = (model.mask_namer.mask_threshold, model.fuse.weight)
    together = evaluate(tiny, tmp_path / "together", (FIRST, SECOND), "TEST.PER_DATASET", ENTRIES)
    assert (model.mask_namer.mask_threshold, model.fuse.weight) == former
    adapters = {name: record["config"]["MODEL"]["CLIP_ADAPTER"] for name, record in together.items()}
    assert [(a["MASK_THR"], a["CLIP_ENSEMBLE_WEIGHT"]) for a in adapters.values()] == [(0.1, 0.3), (0.4, 0.1)]
    assert together[FIRST]["dataset_settings"] == {"MASK_THR": 0.1, "CLIP_ENSEMBLE_WEIGHT": 0.3}
    assert "settings of this data set: MASK_THR 0.1, CLIP_ENSEMBLE_WEIGHT 0.3" in capsys.readouterr().out

    for name, (threshold, weight) in {FIRST: (0.1, 0.3), SECOND: (0.4, 0.1)}.items():
        model.mask_namer.mask_threshold, model.fuse.weight = threshold, weight
        alone = evaluate(tiny, tmp_path / name, [name], THR, threshold, WEIGHT, weight)
        assert alone[name]["results"] == together[name]["results"]
        assert alone[name]["dataset_settings"] == {}
    model.mask_namer.mask_threshold, model.fuse.weight = former
    plain = evaluate(tiny, tmp_path / "plain", [FIRST])
    # the same image under three settings
    assert len({json.dumps(record["results"]) for record in (plain[FIRST], *together.values())}) == 3


def test_settings_are_checked_before_anything_starts(tiny, tmp_path):
    with pytest.raises(OvsegError, match=r"'settings_frist'.*did you mean settings_first"):
        evaluate(tiny, tmp_path, [FIRST], "TEST.PER_DATASET", "{settings_frist: {MASK_THR: 0.3}}")
    assert not list(tmp_path.iterdir())


def test_former_values_come_back_after_errors_too(tiny):
    _, model = tiny
    former = (model.mask_namer.mask_threshold, model.fuse.weight)
    with pytest.raises(KeyboardInterrupt), dataset_settings(model, {"MASK_THR": 0.9, "CLIP_ENSEMBLE_WEIGHT": 0.1}):
        assert (model.mask_namer.mask_threshold, model.fuse.weight) == (0.9, 0.1)
        raise KeyboardInterrupt
    assert (model.mask_namer.mask_threshold, model.fuse.weight) == former


def test_a_setting_that_the_model_does_not_have(tiny):
    _, model = tiny
    former = model.mask_namer.mask_threshold
    with (
        pytest.raises(OvsegError, match="sets CLIP_ENSEMBLE_WEIGHT, but the model StandIn has no such setting: remove"),
        dataset_settings(standin.StandIn(), {"CLIP_ENSEMBLE_WEIGHT": 0.1}),
    ):
        pass
    with (
        pytest.raises(
            OvsegError, match=r"REPLACE_RATIO, .* ProposeAndName \(MaskNetwork, QueryEmbedding, MaskedCrops\)"
        ),
        dataset_settings(model, {"MASK_THR": 0.9, "REPLACE_RATIO": 0.1}),
    ):
        pass
    assert model.mask_namer.mask_threshold == former
