"""main_pretrain.py and main_seg.py with a tiny OVSegmentor: two stages, evaluation, images of the evaluation."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image

import main_pretrain
import main_seg
from ovseg.checkpoint.state_dicts import read_checkpoint, read_state_dict
from ovseg.cli.options import parse_with_options
from ovseg.cli.published_runs import evaluate, pretrain
from ovseg.errors import OvsegError
from ovseg.meta_arch.ovsegmentor import OVSegmentor
from tests.tiny_published import make_tiny_ovsegmentor

CAPTIONS = ["a cat on a bus", "the dog and the cat", "a dog near a boat", "a bus and a boat"]
ENTITIES = [["cat", "bus"], ["dog", "cat"], ["dog", "boat"], ["bus", "boat"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with image-text pairs, a labelled data set, and configurations of both stages."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(1)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index in range(4):
        blocks = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        blocks.resize((64, 64), Image.Resampling.NEAREST).save(folder / "images" / f"{index}.jpg")
        labels = np.repeat(np.repeat(random.integers(0, 3, (2, 2), dtype=np.uint8), 32, 0), 32, 1)
        Image.fromarray(labels).save(folder / "masks" / f"{index}.png")
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "caption", "entity", "pairindex", "pairentity"])
        for index, (caption, entities) in enumerate(zip(CAPTIONS, ENTITIES, strict=True)):
            partners = [next(i for i, e in enumerate(ENTITIES) if word in e and i != index) for word in entities]
            rows.writerow([f"{index}.jpg", caption, ",".join(entities), partners * 5, entities * 5])
    dataset = {"images": "images/*.jpg", "masks": "masks/*.png", "classes": ["background", "cat", "dog"]}
    (folder / "val.yaml").write_text(yaml.safe_dump(dataset))
    config, _ = make_tiny_ovsegmentor(folder)
    shared = {
        "_base_": config.name,
        "train": {"epochs": 1, "warmup_epochs": 0, "base_lr": 4.096},
        "evaluate": {"task": ["seg"]},
        "DATASETS": {"TEST": ["val.yaml"]},
    }
    data = {"train": {"root_dir": "images", "meta_file": "pairs.csv", "batch_size": 2, "num_workers": 0}}
    data["img_aug"] = {"img_size": 64}
    stages = {
        1: {"model": {"use_entityloss": True, "img_encoder": {"imgnet_pretrained": "none"}}},
        2: {"model": {"use_entityloss": True, "use_maskloss": True, "text_encoder": {"fixed": True}}},
    }
    stages[1]["model"]["text_encoder"] = {"pretrained": False}
    for stage, content in stages.items():
        (folder / f"stage{stage}.yml").write_text(yaml.safe_dump(shared | content | {"data": data}))
    return folder


def start(door, run, *words):
    run(parse_with_options(door.build_parser(), [*map(str, words), "--num-gpus", "0"]))


@pytest.fixture(scope="module")
def stage_1(world):
    start(
        *(main_pretrain, pretrain, "--cfg", world / "stage1.yml", "--output", world / "run", "--tag", "one"),
        *("--batch-size", 4, "--opts", "print_freq=1"),
    )
    return world / "run" / "one"


def losses(folder):
    """The lines of the log of a training that have losses."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line for line in lines if "loss_matching" in line]


def test_stage_1_trains_evaluates_and_keeps_the_best(stage_1):
    assert (stage_1 / "best_miou.pth").is_file() and (stage_1 / "model_final.pth").is_file()
    lines = losses(stage_1)
    assert len(lines) == 1 and "loss_entity" in lines[0] and "loss_mask" not in lines[0]
    assert lines[0]["lr"] == pytest.approx(4.096 * 4 / 4096)


@pytest.fixture(scope="module")
def stage_2(world, stage_1):
    options = ["--cfg", world / "stage2.yml", "--output", world / "run2", "--opts", "print_freq=1"]
    start(main_pretrain, pretrain, *options, f"checkpoint.stage1_checkpoint={stage_1 / 'best_miou.pth'}")
    return world / "run2"


def test_stage_2_starts_from_stage_1_and_goes_on_by_itself(world, stage_1, stage_2):
    folder = stage_2
    options = ["--cfg", world / "stage2.yml", "--output", folder, "--opts", "print_freq=1"]
    assert {"loss_matching", "loss_entity", "loss_mask"} <= losses(folder)[0].keys()
    first, second = (read_state_dict(path / "model_final.pth") for path in (stage_1, folder))
    assert {name.partition(".")[0] for name in second.keys() - first.keys()} >= {"img_encoder_momentum"}
    name = "text_encoder.transformer.embeddings.word_embeddings.weight"
    assert np.array_equal(first[name], second[name])  # frozen, and taken from stage 1
    start(main_pretrain, pretrain, *options, "train.epochs=2")  # goes on from the last checkpoint of the same folder
    assert max(line["iteration"] for line in losses(folder)) == 3


def test_a_checkpoint_of_the_other_stage_is_refused(world, stage_1, stage_2, tmp_path):
    one, two = stage_1 / "model_final.pth", stage_2 / "model_final.pth"
    resume = "--resume"
    for stage, options, parts in (
        (2, [resume, one], [one, "is a checkpoint of stage 1, but stage 2 is trained", "checkpoint.stage1_checkpoint"]),
        (1, [resume, two], [two, "is a checkpoint of stage 2, but stage 1 is trained"]),
        (2, ["--opts", f"checkpoint.stage1_checkpoint={two}"], [two, "is a checkpoint of stage 2", "--resume"]),
        (2, ["--opts", "checkpoint.stage1_checkpoint=nowhere.pth"], ["nowhere.pth"]),
    ):
        with pytest.raises(OvsegError) as error:
            start(main_pretrain, pretrain, "--cfg", world / f"stage{stage}.yml", "--output", tmp_path / "out", *options)
        assert [part for part in parts if str(part) not in str(error.value)] == [], str(error.value)
    for number, weights in enumerate((one, two)):  # an evaluation takes either
        start(main_seg, evaluate, "--cfg", world / "stage1.yml", resume, weights, "--output", tmp_path / str(number))


def test_rows_that_cannot_be_used_are_counted(world, tmp_path):
    lines = (world / "pairs.csv").read_text().splitlines()
    broken = world / "broken.csv"
    broken.write_text("\n".join([*lines, *(line.replace(".jpg", "-gone.jpg") for line in lines[1:])]) + "\n")
    options = ["--cfg", world / "stage1.yml", "--output", tmp_path, "--batch-size", 4]
    opts = ["--opts", f"data.train.meta_file={broken}", "print_freq=1", "evaluate.task=[seg]"]
    start(main_pretrain, pretrain, *options, *opts)
    counts = [line["skipped_rows"] for line in losses(tmp_path)]
    assert len(counts) == 2 and counts[-1] >= 4  # an epoch has four of them
    assert read_checkpoint(tmp_path / "model_final.pth")["skipped_rows"] == counts[-1]
    assert f"in all, {counts[-1]:.0f} draws were of rows that cannot be used" in (tmp_path / "log.txt").read_text()
    start(main_pretrain, pretrain, *options, *opts, "train.epochs=2")  # resumes, and counts on
    assert losses(tmp_path)[-1]["skipped_rows"] >= counts[-1] + 4


def test_evaluation_writes_results_and_images(world, stage_1, monkeypatch, capsys):
    calls, forward = [], OVSegmentor.forward
    monkeypatch.setattr(OVSegmentor, "forward", lambda self, batch: calls.append(len(batch)) or forward(self, batch))
    start(
        *(main_seg, evaluate, "--cfg", world / "stage1.yml", "--resume", stage_1 / "model_final.pth"),
        *("--output", world / "seg", "--vis", "pred", "input_pred", "all_groups"),
    )
    folder = world / "seg"
    assert sum(calls) == 4  # no image is segmented twice
    record = json.loads((folder / "inference" / "val" / "results.json").read_text())
    assert record["protocol"]["background"] == "window threshold" and record["background_threshold"] == 0.95
    assert "best score below 0.95, or below the best one of their window if that is lower" in capsys.readouterr().out
    drawings = {str(path.relative_to(folder / "vis_imgs")) for path in (folder / "vis_imgs").rglob("*.*")}
    assert {"pred/0.png", "input_pred/3.jpg", "all_groups/2_layer0.jpg"} <= drawings and len(drawings) == 12
    with Image.open(folder / "vis_imgs" / "pred" / "0.png") as pred:
        assert set(np.unique(pred)) <= {0, 1, 2}


def test_eval_of_main_pretrain_evaluates(world, stage_1):
    options = ["--cfg", world / "stage1.yml", "--resume", stage_1 / "model_final.pth", "--output", world / "eval"]
    start(main_pretrain, pretrain, *options, "--eval")
    assert (world / "eval" / "inference" / "val" / "results.json").is_file()
    assert not list((world / "eval").glob("*.pth"))


@pytest.mark.parametrize(
    ("door", "run", "words", "parts"),
    [
        (main_seg, evaluate, [], ["--resume is missing", "random"]),
        (main_seg, evaluate, ["--resume", "nowhere.pth"], ["nowhere.pth", "does not exist"]),
        (main_seg, evaluate, ["--resume", "nowhere.pth", "--opts", "model.depht=3"], ["model.depht"]),
        (main_seg, evaluate, ["--resume", "WORLD/tiny.safetensors", "--vis", "heat"], ["--vis heat"]),
        (main_pretrain, pretrain, ["--eval"], ["--resume is missing"]),
        (main_pretrain, pretrain, ["--batch-size", "0"], ["data.train.batch_size", "at least 1"]),
        (main_pretrain, pretrain, ["--opts", "data.train.read_from=petrel"], ["data.train.read_from", "dir"]),
        (main_pretrain, pretrain, ["--opts", "data.train.meta_file=none.csv"], ["none.csv"]),
        (main_pretrain, pretrain, ["--opts", "data.train.meta_file=WORLD/bad.csv"], ["bad.csv", "image_id"]),
    ],
)
def test_bad_input_is_refused_by_name(world, tmp_path, door, run, words, parts):
    (world / "bad.csv").write_text("name,text\n0.jpg,a cat\n")
    words = [word.replace("WORLD", str(world)) for word in words]
    with pytest.raises(OvsegError) as error:
        start(door, run, "--cfg", world / "stage1.yml", "--output", tmp_path / "out", *words)
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
