"""Training of learned prompts: segments, crops, what trains, resuming, and the use of the result."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.adaptation.prompt_tuning import RegionMapper, choose_segments, tune_prompts
from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.clip.adapter import ClipAdapter
from ovseg.errors import OvsegError
from tests.tiny_clip import TINY, tiny_cfg

WORDS = ("dark", "bright", "grey")
PREFIX = "clip_adapter.prompt_learner.prefix_prompt"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eight images of a dark and a bright half; the third class is in the last one only."""
    folder, found = tmp_path_factory.mktemp("halves"), []
    for index in range(8):
        labels = np.zeros((20, 24), np.uint8)
        labels[:, 8 + index :] = 1
        labels[:2] = 255
        if index == 7:
            labels[10:] = 2
        image = np.repeat(labels[..., None] * 80, 3, axis=2).astype(np.uint8)
        names = {"file_name": str(folder / f"{index}.png"), "sem_seg_file_name": str(folder / f"{index}_labels.png")}
        cv2.imwrite(names["file_name"], image)
        cv2.imwrite(names["sem_seg_file_name"], labels)
        found.append(names)
    name = "prompt_tuning_halves"
    DatasetCatalog.register(name, lambda: found)
    MetadataCatalog.get(name).set(stuff_classes=list(WORDS), ignore_label=255)
    yield found
    DatasetCatalog.remove(name)


def config(tmp_path, **keys):
    cfg = tiny_cfg(tmp_path, PROMPT_LEARNER="learnable", PROMPT_DIM=TINY["text_cfg"]["width"], PROMPT_SHAPE=[2, 1])
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.NAMER.NAME, cfg.SEED = "SimBaseline", ["QueryEmbedding", "MaskedCrops"], 1
    cfg.MODEL.PROPOSER.NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "MaskFormer", 3
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = ("prompt_tuning_halves",), (), 0
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.WARMUP_ITERS = "SGD", 0.1, 4, 0
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 6, 3
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_segments_per_class(records):
    counts = np.bincount([segment["class"] for segment in choose_segments(records, 3, 255, -1, 0)])
    assert counts.tolist() == [8, 8, 1]
    few = choose_segments(records, 3, 255, 2, 0)
    assert np.bincount([segment["class"] for segment in few]).tolist() == [2, 2, 1]
    assert few == choose_segments(records, 3, 255, 2, 0) != choose_segments(records, 3, 255, 2, 1)
    with pytest.raises(OvsegError, match="holds the value 2, but labels must be below"):
        choose_segments(records, 2, 255, -1, 0)


def test_crops_are_parts_of_the_box(records):
    np.random.seed(0)
    for segment in choose_segments(records, 3, 255, -1, 0):
        image, mask, number = RegionMapper(32)(segment)
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and mask.shape == (32, 32)
        assert number == segment["class"] and mask.any()
        inside = image[:, mask > 0].float()
        assert (inside - 80.0 * segment["class"]).abs().median() <= 1


def test_training_resumes_and_gives_a_checkpoint(records, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = tune_prompts(config(tmp_path / "a"))
    state = read_state_dict(whole)
    assert {name.rpartition(".")[2] for name in state} == {
        *("prefix_prompt", "suffix_prompt"),
        *("start_signal", "dot_signal", "end_signal", "pad_signal"),
    }
    tune_prompts(config(tmp_path / "b", SOLVER__MAX_ITER=3))
    stopped = read_state_dict(Path(tmp_path, "b/out/model_final.pth"))
    resumed = read_state_dict(tune_prompts(config(tmp_path / "b"), resume=True))
    assert torch.equal(state[PREFIX], resumed[PREFIX])
    assert not torch.equal(stopped[PREFIX], resumed[PREFIX])
    cfg = tiny_cfg(tmp_path, PROMPT_DIM=16, PROMPT_SHAPE=[2, 1], PROMPT_CHECKPOINT=str(whole))
    adapter = ClipAdapter(cfg, text="learnable", mask_prompt_depth=None)
    assert torch.equal(adapter.prompt_learner.prefix_prompt, state[PREFIX])
    assert not any(p.requires_grad for p in adapter.prompt_learner.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__CLIP_ADAPTER__PROMPT_LEARNER": "vild"}, "set MODEL.CLIP_ADAPTER.PROMPT_LEARNER to learnable"),
        ({"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 5}, "NUM_CLASSES is 5, but the training data set"),
        ({"DATASETS__SAMPLE_PER_CLASS": 0}, "SAMPLE_PER_CLASS is 0: give -1"),
        ({"DATASETS__TRAIN": "()"}, "DATASETS.TRAIN is empty"),
        ({"ORACLE": True}, "ORACLE = True has no effect"),
    ],
)
def test_mistakes(records, tmp_path, keys, message):
    with pytest.raises(OvsegError, match=message):
        tune_prompts(config(tmp_path, **keys))
