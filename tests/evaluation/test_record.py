from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ovseg.config import get_cfg, load_cfg
from ovseg.data.file_list import file_list_checksum
from ovseg.data.protocol import protocol_of
from ovseg.engine.run import evaluate
from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.identity import differences, fingerprint, git_commit, model_digest, short
from ovseg.evaluation.record import read_record


@META_ARCH_REGISTRY.register()
class RecordTestModel(standin.StandIn):
    """A stand-in that has weights."""

    def __init__(self, cfg: object) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def results(output: Path) -> Path:
    return output / "inference" / standin.NAME / "results.json"


def test_the_record_tells_what_one_must_know_to_compare(data_folder):
    weights = data_folder / "weights.pth"
    torch.save({"model": {"scale": torch.full((3,), 2.0)}}, weights)
    cfg = standin.configuration(data_folder / "out", "MODEL.WEIGHTS", str(weights), "SEED", 5)
    cfg.MODEL.META_ARCHITECTURE = "RecordTestModel"
    scores = evaluate(cfg)[standin.NAME]
    record = read_record(results(data_folder / "out"))
    assert record["schema"] == 2
    assert (record["dataset"], record["num_images"], record["num_classes"]) == (standin.NAME, standin.NUM_IMAGES, 5)
    assert record["file_list_sha256"] == file_list_checksum(f"{index}.png" for index in range(standin.NUM_IMAGES))
    assert record["protocol"] == protocol_of(standin.NAME).record()
    assert {"variant", "vocabulary", "background", "ignore_label"} <= record["protocol"].keys()
    assert record["weights"]["model"] == {
        "name": str(weights),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert record["weights"]["clip"] == {"name": cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS, "sha256": None}
    assert record["class_names"] == [name.strip() for name in standin.CLASSES]
    assert {"mIoU-union", "mIoU-gt", "pACC", "mACC", "fwIoU", "mIoU-base", "mIoU-novel", "hIoU-base"} <= scores[
        "sem_seg"
    ].keys()
    for task, values in scores.items():
        assert record["results"][task] == pytest.approx(values, nan_ok=True, rel=0, abs=0)
    assert (record["seed"], record["device"], record["num_processes"]) == (5, "cpu", 1)
    assert record["views"] == {"augmentation": None, "sliding_window": None, "dense_crf": False}
    assert {"python", "torch", "numpy", "pillow", "detectron2", "ovseg"} <= record["versions"].keys()
    assert record["config"]["MODEL"]["WEIGHTS"] == str(weights)


def test_resuming_evaluates_the_newest_checkpoint_and_says_so(data_folder):
    weights = data_folder / "weights.pth"
    torch.save({"model": {"scale": torch.ones(3)}}, weights)
    cfg = standin.configuration(data_folder / "out", "MODEL.WEIGHTS", str(weights))
    cfg.MODEL.META_ARCHITECTURE = "RecordTestModel"
    evaluate(cfg, resume=True)
    first = read_record(results(data_folder / "out"))
    assert first["weights"]["model"]["name"] == str(weights)
    checkpoint = data_folder / "out" / "model_final.pth"
    torch.save({"model": {"scale": torch.zeros(3)}, "optimizer": {}, "iteration": 9}, checkpoint)
    evaluate(cfg, resume=True)
    second = read_record(results(data_folder / "out"))
    assert second["weights"]["model"]["name"] == str(checkpoint)
    assert second["weights"]["model_sha256"] != first["weights"]["model_sha256"]
    assert str(weights) == cfg.MODEL.WEIGHTS


def test_a_model_in_training_has_an_iteration_and_no_files(data_folder):
    runner.evaluate_all(standin.configuration(data_folder / "out"), standin.StandIn(), iteration=500)
    weights = read_record(results(data_folder / "out"))["weights"]
    assert weights == {"model_sha256": model_digest(standin.StandIn()), "iteration": 500}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"there is no .*results\.json: evaluate first"),
        ("{", "cannot be read"),
        ("[1]", r"is not a results\.json"),
        ('{"dataset": "x", "results": {}, "schema": "two"}', "has schema 'two'"),
        ('{"dataset": "x", "results": {}, "schema": 2}', "lacks num_images, file_list_sha256, protocol"),
        ('{"dataset": "x", "results": {}}', "by an older ovseg; evaluate again"),
    ],
)
def test_unusable_records(tmp_path, text, message):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(OvsegError, match=message):
        read_record(tmp_path / "results.json")


def test_a_models_digest_tells_values_names_and_types():
    def model(value: float = 1.0, name: str = "a", dtype: torch.dtype = torch.float32) -> nn.Module:
        made = nn.Module()
        made.register_buffer(name, torch.tensor(value, dtype=dtype))
        made.register_buffer("other", torch.arange(6).view(2, 3).T)
        return made

    digests = [model_digest(m) for m in (model(), model(2.0), model(name="b"), model(dtype=torch.bfloat16))]
    assert len(set(digests)) == 4
    assert digests[0] == model_digest(model())


def test_commit_of_a_checkout_alone(tmp_path):
    find = git_commit.__wrapped__
    package = tmp_path / "ovseg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert find(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert find(package) is None  # in another project's checkout
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    commit = find(package)
    assert len(commit) == 40
    (package / "new.py").write_text("")
    assert find(package) == f"{commit}+changes"


def test_predictions_may_be_asked_for_in_every_way(data_folder):
    for value in ("False", "True", "rle", "png", "None"):
        cfg = get_cfg()
        cfg.merge_from_list(["TEST.SAVE_PREDICTIONS", value])
        assert str(cfg.TEST.SAVE_PREDICTIONS) == value
    with pytest.raises(OvsegError, match=r"TEST\.SAVE_PREDICTIONS is 'jpg'"):
        cfg = standin.configuration(data_folder / "out", "TEST.SAVE_PREDICTIONS", None, "TEST.SAVE_PREDICTIONS", "jpg")
        runner.evaluate_all(cfg, standin.StandIn())
    assert not (data_folder / "out").exists()


def test_differences_are_listed_by_name():
    first = {"a": {"b": [1, 2], "c": "x"}, "d": 1, "gone": ""}
    second = {"a": {"b": (1, 2), "c": "y" * 90}, "d": 1.5, "new": None}
    changes = differences(first, second)
    assert changes[0] == f"a.c was x and is {'y' * 57}..."
    assert changes[1:] == ["d was 1 and is 1.5", "gone was '' and is None", "new was None and is None"]
    assert short("a\n b") == "a b"


def test_records_are_json_that_others_read(data_folder):
    runner.evaluate_all(standin.configuration(data_folder / "out"), standin.StandIn())
    content = json.loads(results(data_folder / "out").read_text(), parse_constant=pytest.fail)
    assert content["results"]["sem_seg"]["IoU-water"] is None
    assert np.isnan(read_record(results(data_folder / "out"))["results"]["sem_seg"]["IoU-water"])


def test_the_identity_does_not_depend_on_the_folder_of_the_configuration(tmp_path):
    found = []
    for folder, channels in (("clone", 8), ("moved", 8), ("changed", 16)):
        place = tmp_path / folder
        place.mkdir()
        (place / "clip.json").write_text(json.dumps({"embed_dim": channels}))
        (place / "config.yaml").write_text("MODEL: {CLIP_ADAPTER: {CLIP_MODEL_NAME: clip.json}}")
        cfg = load_cfg(place / "config.yaml")
        assert str(place / "clip.json") == cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME
        found.append(fingerprint(cfg, "", [], protocol_of("ade20k_sem_seg_val")))
    assert found[0] == found[1] != found[2]
    assert differences(found[0], found[2], "{0}") == ["config.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME"]
