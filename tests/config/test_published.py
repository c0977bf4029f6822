"""OVSegmentor's published configuration format: the table of its keys, files with bases, interpolations, options."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovseg.config import DEFAULTS, get_cfg
from ovseg.config.limits import lookup
from ovseg.config.published import RENAMED, SCALED, SYSTEM, TEST_SETS, WINDOWS, WORDS, known_keys, translate
from ovseg.config.values import leaves
from ovseg.errors import OvsegError

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = [CONFIGS / "ovsegmentor" / f"ovsegmentor_pretrain_vit_bert_stage{stage}.yml" for stage in (1, 2)]


def read(path, opts=(), processes=1):
    cfg = get_cfg()
    cfg.merge_from_file(path, processes=processes)
    cfg.merge_from_list(opts)
    return cfg


def write(folder, text, name="c.yml"):
    (folder / name).write_text(text)
    return folder / name


def test_every_key_of_the_table_is_one_of_ours():
    ours = [*RENAMED.values(), *SCALED.values(), *WINDOWS.values(), *SYSTEM, *(key for key, _ in WORDS.values())]
    detectron2 = {
        *("MODEL.WEIGHTS", "MODEL.META_ARCHITECTURE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "OUTPUT_DIR", "SEED"),
        *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD"),
        *("SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LR_SCHEDULER_NAME"),
        "SOLVER.AMP.ENABLED",
    }
    assert [key for key in ours if key not in DEFAULTS and key not in detectron2] == []
    cfg = get_cfg()
    for key in ours:
        lookup(cfg, key)
    assert len(known_keys()) == len(set(known_keys())) or set(known_keys())


def test_stage_1():
    cfg = read(STAGES[0], processes=8)
    assert cfg.MODEL.META_ARCHITECTURE == "OVSegmentor"
    assert cfg.SOLVER.IMS_PER_BATCH == 2048
    rates = cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_LR, cfg.SOLVER.MIN_LR
    assert rates == pytest.approx((3.2e-4, 8e-6, 8e-5), rel=1e-12)  # specification 6
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.WARMUP_EPOCHS, cfg.SOLVER.WEIGHT_DECAY) == (30, 2, 0.05)
    assert cfg.SOLVER.OPTIMIZER == "ADAMW" and list(cfg.SOLVER.BETAS) == [0.9, 0.999]
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "EpochCosine" and not cfg.SOLVER.AMP.ENABLED
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 5.0)
    model = cfg.MODEL.OVSEGMENTOR
    assert (model.USE_ENTITYLOSS, model.USE_MASKLOSS, model.TEXT_ENCODER.FIXED) == (True, False, False)
    assert model.TEXT_ENCODER.CONFIG == "bert-base-uncased" and model.TEMPLATES == "simple"
    assert list(model.IMG_ENCODER.NUM_GROUP_TOKENS) == [64, 0] and model.MULTI_LABEL == 0
    assert cfg.INPUT.IMG_AUG.DEIT_AUG and cfg.INPUT.TEXT_AUG.MAX_SEQ_LEN == 77
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (448, 2048)
    assert list(cfg.TEST.TASKS) == ["cls", "seg"] and list(cfg.TEST.SAVE_BEST) == ["mIoU", "top1"]
    assert (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.LOG_PERIOD, cfg.SEED) == (1, 1, 100, 0)


def test_stage_2():
    cfg = read(STAGES[1], processes=8)
    assert cfg.SOLVER.IMS_PER_BATCH == 1024
    assert pytest.approx((2.5e-6, 2.5e-7), rel=1e-12) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.MIN_LR)
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.WARMUP_EPOCHS) == (10, 0)
    model = cfg.MODEL.OVSEGMENTOR
    assert (model.USE_ENTITYLOSS, model.USE_MASKLOSS, model.TEXT_ENCODER.FIXED) == (True, True, True)
    assert model.STAGE1_CHECKPOINT.endswith("best_miou.pth") and model.CROSS_THRESHOLD == 0.6
    assert not cfg.INPUT.IMG_AUG.DEIT_AUG and list(cfg.INPUT.IMG_AUG.IMG_SCALE) == [0.4, 1.0]


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("voc12", 0.95), ("voc_context", 0.35), ("coco", 0.9), ("coco_stuff", 0.95), ("ade20k", 0.95)],
)
def test_data_sets_have_their_threshold(name, threshold):
    cfg = read(CONFIGS / f"test_{name}.yml")
    assert threshold == cfg.MODEL.OVSEGMENTOR.BG_THRESH
    assert tuple(cfg.DATASETS.TEST) in {(dataset,) for dataset, _ in TEST_SETS.values()}
    assert list(cfg.TEST.TASKS) == ["seg"] and list(cfg.TEST.SAVE_BEST) == ["mIoU"]


def test_default_yml_holds_our_defaults():
    defaults, cfg = get_cfg(), read(CONFIGS / "default.yml")
    for key in (key for key in DEFAULTS if key.startswith(("MODEL.OVSEGMENTOR.", "INPUT.IMG_AUG.", "INPUT.TEXT_AUG."))):
        if not key.endswith("PRETRAINED_CHECKPOINT"):
            assert lookup(cfg, key) == lookup(defaults, key), key


def test_learning_rates_follow_batch_processes_and_accumulation(tmp_path, monkeypatch):
    path = write(tmp_path, "train: {base_lr: 4.096e-1, accumulation_steps: 2}\ndata: {train: {batch_size: 4}}\n")
    assert pytest.approx(1e-4 * 4 * 3 * 2) == read(path, processes=3).SOLVER.BASE_LR
    monkeypatch.setenv("WORLD_SIZE", "5")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert cfg.SOLVER.IMS_PER_BATCH == 20
    assert pytest.approx(1e-4 * 20 * 2) == cfg.SOLVER.BASE_LR
    assert pytest.approx(1e-4 * 2) == read(path, ["data.train.batch_size=1"]).SOLVER.BASE_LR
    assert pytest.approx(1e-4 * 4) == read(path, ["train.accumulation_steps=0"]).SOLVER.BASE_LR


def test_options_go_through_the_table():
    cfg = read(
        STAGES[0],
        [
            *("model.dual_dice=true", "model.use_maskloss", "True", "train.clip_grad=0", "train.amp_opt_level=O1"),
            *("evaluate.seg.cfg=segmentation/configs/_base_/datasets/pascal_context.py", "seed=3"),
            *("evaluate.seg.opts=[test_cfg.bg_thresh=0.4,test_cfg.stride=(112,112)]", "SOLVER.MAX_EPOCHS=7"),
        ],
    )
    model = cfg.MODEL.OVSEGMENTOR
    assert model.DUAL_DICE and model.USE_MASKLOSS and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.AMP.ENABLED
    assert (model.BG_THRESH, list(model.STRIDE), cfg.SEED, cfg.SOLVER.MAX_EPOCHS) == (0.4, [112, 112], 3, 7)
    assert read(STAGES[0], {"model": {"cross_layers": 2}}).MODEL.OVSEGMENTOR.CROSS_LAYERS == 2
    whole = read(CONFIGS / "test_voc12.yml", ["evaluate.seg.opts=[test_cfg.mode=whole]"]).MODEL.OVSEGMENTOR
    assert list(whole.STRIDE) == [0, 0]
    cfg = read(CONFIGS / "test_voc12.yml", ["evaluate.seg.opts=[test_cfg.mode=whole]"])
    cfg.merge_from_list(["evaluate.seg.opts=[test_cfg.mode=slide]"])  # takes it back
    assert (list(cfg.MODEL.OVSEGMENTOR.WINDOW), list(cfg.MODEL.OVSEGMENTOR.STRIDE)) == ([448, 448], [224, 224])


def test_options_over_a_file_of_ours_keep_its_batch(tmp_path):
    cfg = read(write(tmp_path, "SOLVER: {IMS_PER_BATCH: 512}\n", "c.yaml"), ["train.base_lr=0.008"])
    assert (pytest.approx(1e-3), 512) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH)


def test_our_keys_in_a_published_file_win(tmp_path):
    path = write(tmp_path, "train: {epochs: 3}\nSOLVER: {MAX_EPOCHS: 4}\nMODEL: {DEVICE: cpu}\n")
    cfg = read(path)
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.MODEL.DEVICE) == (4, "cpu")
    assert read(write(tmp_path, "_BASE_: c.yml\nSEED: 1\n", "d.yaml")).SOLVER.MAX_EPOCHS == 4


def test_paths_count_from_the_file_then_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name in ("pairs.csv", "configs/stage1.pth"):
        (tmp_path / name).write_text("")
    path = write(
        tmp_path / "configs",
        "data: {train: {meta_file: pairs.csv, root_dir: nowhere}}\ncheckpoint: {stage1_checkpoint: stage1.pth}\n",
    )
    monkeypatch.chdir(tmp_path)
    cfg = read("configs/c.yml")
    assert str(tmp_path / "pairs.csv") == cfg.DATASETS.IMAGE_TEXT.FILE
    assert cfg.DATASETS.IMAGE_TEXT.ROOT == "nowhere"
    assert str(path.parent / "stage1.pth") == cfg.MODEL.OVSEGMENTOR.STAGE1_CHECKPOINT


def test_the_published_keys_stay_known(tmp_path):
    cfg = read(CONFIGS / "default.yml", ["vocab=[cat,dog]"]).clone()
    assert cfg.published()["vocab"] == ["cat", "dog"]
    assert cfg.published()["data"]["train"]["use_entity"] is False
    assert get_cfg().published() == {}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {depht: 3}", ["model.depht"]),
        ("model: {img_encoder: {embed_dims: 3}}", ["model.img_encoder.embed_dims", "did you mean", "embed_dim"]),
        ("model: {EMBED: 3}", ["model.EMBED"]),
        ("model: {type: GroupViT}", ["model.type", "MultiLabelContrastive"]),
        ("model: {text_encoder: {type: TextTransformer}}", ["model.text_encoder.type", "Roberta"]),
        ("data: {train: {read_from: petrel}}", ["data.train.read_from", "set it to dir", "root_dir"]),
        ("data: {val: {read_from: petrel}}", ["data.val.read_from", "set it to dir"]),
        ("data: {train: {use_entity: true}}", ["data.train.use_entity", "${model.use_entityloss}"]),
        ("data: {train: {batch_size: 0}}", ["data.train.batch_size", "at least 1"]),
        ("data: {train: {batch_size: many}}", ["data.train.batch_size", "whole number"]),
        ("train: {epochs: 0}", ["train.epochs is 0", "at least 1"]),
        ("train: {lr_scheduler: {name: linear}}", ["train.lr_scheduler.name", "cosine"]),
        ("evaluate: {seg: {cfg: cityscapes}}", ["evaluate.seg.cfg", "pascal_voc12"]),
        ("evaluate: {seg: {opts: [bg=1]}}", ["evaluate.seg.opts", "bg=1", "test_cfg.bg_thresh"]),
        ("model: {multi_label: '${data.nothing}'}", ["data.nothing", "does not exist"]),
        ("model: {multi_label: '${model.multi_label}'}", ["model.multi_label", "repeats itself"]),
        ("_base_: missing.yml", ["missing.yml"]),
        ("_base_: ours.yaml\nmodel: {multi_label: 0}", ["ours.yaml", "published format"]),
        ("something: 1\nmodel: {multi_label: 0}", ["something"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, text, parts):
    write(tmp_path, "SEED: 3\n", "ours.yaml")
    with pytest.raises(OvsegError) as error:
        read(write(tmp_path, text))
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("option", ["model.nothing=1", "train.epochs.x=1", "data.train.read_from=petrel"])
def test_options_that_cannot_be_are_refused_by_name(option):
    with pytest.raises(OvsegError, match=option.partition("=")[0]):
        read(STAGES[0], [option])


def test_translate_leaves_the_tree_alone():
    tree = {"data": {"train": {"batch_size": 2}}, "evaluate": {"seg": {"cfg": "coco"}}}
    translate(tree, "a test", 4)
    assert tree == {"data": {"train": {"batch_size": 2}}, "evaluate": {"seg": {"cfg": "coco"}}}


@pytest.mark.parametrize("stage", [1, 2])
def test_the_published_files_and_ours_say_the_same(stage):
    """Except for where data and results are, and the tasks of the evaluations."""
    published, ours = read(STAGES[stage - 1], processes=8), read(CONFIGS / f"ovsegmentor_vitB_stage{stage}.yaml")
    sections = ("MODEL.OVSEGMENTOR.", "SOLVER.", "INPUT.IMG_AUG.", "INPUT.TEXT_AUG.", "TEST.EVAL_PERIOD", "SEED")
    other = ("STAGE1_CHECKPOINT", "IMGNET_PRETRAINED_CHECKPOINT", "ACCUMULATION_STEPS")  # 0 and 1 are the same
    keys = [key for key, _ in leaves(ours) if key.startswith(sections) and not key.endswith(other)]
    different = {key: (lookup(published, key), lookup(ours, key)) for key in keys}
    assert {key: pair for key, pair in different.items() if pair[0] != pytest.approx(pair[1])} == {}
    assert tuple(published.DATASETS.TEST) == tuple(ours.DATASETS.TEST)
