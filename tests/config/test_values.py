"""Values, options and command lines as people write them; values that mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import demo
from ovseg.cli.options import parse_with_options
from ovseg.cli.train import train_parser
from ovseg.config import get_cfg, load_cfg
from ovseg.config.limits import check_config, lookup
from ovseg.engine.launch import choose_device
from ovseg.engine.run import evaluate, train
from ovseg.errors import LONGEST_MESSAGE, OvsegError, shown
from ovseg.io.devices import configured_device, find_device
from ovseg.io.plain_yaml import read_plain_yaml
from ovseg.segmenter import Segmenter

REPO = Path(__file__).parents[2]
TOY = REPO / "configs" / "toy" / "ovseg_toy.yaml"
WEIGHT, TEST = "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT", "DATASETS.TEST"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        (WEIGHT, "1", 1.0),
        (WEIGHT, 1, 1.0),
        (WEIGHT, np.float32(0.5), 0.5),
        (WEIGHT, "-1", -1.0),
        ("SOLVER.MAX_ITER", "100.0", 100),
        ("SOLVER.MAX_ITER", "1e3", 1000),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "inf", float("inf")),
        ("TEST.AUG.ENABLED", "true", True),
        ("TEST.AUG.ENABLED", "off", False),
        ("TEST.SAVE_PREDICTIONS", "true", True),
        ("TEST.SAVE_PREDICTIONS", "rle", "rle"),
        (TEST, "my_data.yaml", ("my_data.yaml",)),
        (TEST, '("my_data.yaml")', ("my_data.yaml",)),
        (TEST, "(my_data.yaml)", ("my_data.yaml",)),
        (TEST, "[a, b]", ("a", "b")),
        (TEST, ["a", "b"], ("a", "b")),
        (TEST, "a,b", ("a", "b")),
        (TEST, "()", ()),
        ("INPUT.MIN_SIZE_TRAIN", "160", (160,)),
        ("MODEL.FREQUENCY_SIGMA", "[3.4, 2.0]", [3.4, 2]),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", Path("a/b"), "a/b"),
        ("WANDB.NAME", "2024", "2024"),
        ("WANDB.NAME", "None", None),
    ],
)
def test_values_in_any_clear_form(key, text, value):
    cfg = get_cfg()
    for options in ([key, text], {key: text}, [(key, text)], [f"{key}={text}"]):
        cfg.merge_from_list(options)
        found = lookup(cfg, key)
        assert found == value and type(found) is type(value)


def test_the_same_in_files(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "MODEL: {CLIP_ADAPTER: {CLIP_ENSEMBLE_WEIGHT: 1}}\nSOLVER: {BASE_LR: 1e-4, MAX_ITER: 1e3}\n"
        "DATASETS: {TEST: my_data.yaml}\nINPUT:\nTEST: {PER_DATASET: {toy_sem_seg_val: {MASK_THR: '0.2'}}}"
    )
    cfg = load_cfg(tmp_path / "a.yaml")
    assert (lookup(cfg, WEIGHT), cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (1.0, 1e-4, 1000)
    assert cfg.DATASETS.TEST == ("my_data.yaml",) and cfg.INPUT == get_cfg().INPUT
    assert cfg.TEST.PER_DATASET.toy_sem_seg_val.MASK_THR == 0.2


def test_nested_options():
    options = {
        "MODEL": {"DEVICE": "cpu", "SWIN.EMBED_DIM": 48},
        "TEST.PER_DATASET": {"toy_sem_seg_val": {"MASK_THR": 1}},
    }
    cfg = load_cfg(TOY, options)
    assert (cfg.MODEL.DEVICE, cfg.MODEL.SWIN.EMBED_DIM) == ("cpu", 48)
    assert cfg.TEST.PER_DATASET == {"toy_sem_seg_val": {"MASK_THR": 1}}
    assert load_cfg(TOY, None) == load_cfg(TOY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.MAX_ITER", "100.5"], "MAX_ITER is '100.5': it must be a whole number"),
        (["SOLVER.MAX_ITER", "9" * 5000], "it must be a whole number"),
        (["SOLVER.BASE_LR", "true"], "must be a number"),
        (["TEST.AUG.ENABLED", "maybe"], "must be True or False"),
        (["MODEL.PIXEL_STD", "[a, b, c]"], "must be a list of numbers"),
        (["MODEL.WEIGHTS", "MODEL.DEVICE", "cpu"], "MODEL.WEIGHTS lacks a value, MODEL.DEVICE follows it"),
        (["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS"], "MODEL.WEIGHTS lacks a value"),
        (["MODEL.SWIN", "3"], "it must hold keys, such as MODEL.SWIN."),
        ({"MODEL": {"WEIGHTS": {"a": 1}}}, "unknown configuration key MODEL.WEIGHTS.a"),
        ([1, 2], "1 is not a key"),
        ("MODEL.DEVICE cpu", "give a list"),
        (["", "x"], "unknown configuration key ''"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(OvsegError, match=message):
        load_cfg(TOY, options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.META_ARCHITECTURE", "ovseg", "did you mean OVSeg"),
        ("MODEL.META_ARCHITECTURE", "Foo", "such as .*OVSeg, OVSegDEMO, OVSegmentor, SCAN"),
        ("MODEL.BACKBONE.NAME", "SwinTransformer", "did you mean D2SwinTransformer"),
        ("MODEL.SEM_SEG_HEAD.NAME", "OpenVocabMask2FormerHead", "did you mean OpenVocaMask2FormerHead"),
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformPixelDecoder", "did you mean MSDeformAttnPixelDecoder"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RPNN", "did you mean RPN"),
        ("MODEL.SEM_SEG_HEAD.NORM", "GroupNorm", "choose one of .*GN"),
        ("MODEL.RESNETS.DEPTH", "51", "choose one of 18, 34, 50, 101, 152"),
        ("MODEL.RESNETS.NORM", "frozen", "did you mean FrozenBN"),
        ("MODEL.RESNETS.OUT_FEATURES", "res6", "choose one of stem, res2"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "40", "a multiple of 32 with NORM GN"),
        ("SOLVER.POLY_LR_POWER", "-1", "at least 0"),
        ("SOLVER.OPTIMIZER", "ADAM", "choose one of ADAMW, SGD"),
        ("SOLVER.LR_SCHEDULER_NAME", "PolyLR", "did you mean WarmupPolyLR"),
        ("DATALOADER.SAMPLER_TRAIN", "Random", "choose one of TrainingSampler"),
        ("INPUT.FORMAT", "XYZ", "choose one of RGB, BGR"),
        ("MODEL.CLIP_ADAPTER.MASK_FILL", "black", "choose one of mean, zero"),
        ("MODEL.CLIP_ADAPTER.PRECISION", "fp8", "choose one of fp32"),
        ("TEST.SAVE_PREDICTIONS", "json", "choose one of None, False, True, rle, png"),
        ("METRIC", "vanilla", "did you mean Vanilla"),
        (WEIGHT, "1.5", "0 or below means CLIP only"),
        ("MODEL.CLIP_ADAPTER.MASK_THR", "-0.1", "give a number from 0 to 1"),
        ("MODEL.CLIP_ADAPTER.MASK_THR", "nan", "finite"),
        ("SOLVER.BASE_LR", "inf", "finite"),
        ("MODEL.PIXEL_STD", "[0, 1, 1]", "above 0"),
        ("MODEL.PIXEL_STD", "[1, 1]", "give 3 numbers"),
        ("INPUT.MIN_SIZE_TEST", "-1", "from 0 to"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "from 1 to"),
        ("SOLVER.MAX_ITER", "0", "at least 1"),
        ("SOLVER.IMS_PER_BATCH", "0", "from 1 to"),
        ("DATALOADER.NUM_WORKERS", "-1", "from 0 to"),
        ("MODEL.MASK_FORMER.NHEADS", "7", "a divisor of HIDDEN_DIM"),
        ("MODEL.SWIN.NORM_INDICES", "[-0.5]", "give stages from 0 to 3"),
        ("LOG_PERIOD", "0", "at least 1"),
        ("INPUT.TEXT_AUG.MAX_SEQ_LEN", "2", "from 3 to"),
        ("INPUT.IMG_AUG.IMG_SCALE", "[1.0, 0.4]", "the least share first"),
        ("MODEL.OVSEGMENTOR.IMG_ENCODER.DEPTHS", "[6, 6, 6]", "give 2 numbers"),
        ("MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_GROUP_TOKENS", "[64, 8]", "a number and 0"),
        ("MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_OUTPUT_GROUPS", "[8, 8]", "give 1 number$"),
        ("OUTPUT_DIR", "", "give a name"),
    ],
)
def test_values_that_mean_nothing(key, value, message):
    with pytest.raises(OvsegError, match=f"^{key} is .*{message}"):
        load_cfg(TOY, [key, value])


def test_keys_that_the_original_ignores():
    with pytest.raises(OvsegError, match=r"TOPMASK_RATIO = 0\.5 has no effect.* set MODEL\.OVSEGMENTOR\.GROUP_RATIO"):
        load_cfg("ovsegmentor_vitB_stage1", ["MODEL.OVSEGMENTOR.TOPMASK_RATIO", 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "p3"]}, "give features of the backbone .* res2, res3, res4, res5"),
        ({"MODEL.SEM_SEG_HEAD.IN_FEATURES": []}, "IN_FEATURES is .*give features"),
        ({"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}, "cannot be built .* check .*MODEL.FPN"),
        ({"MODEL.RESNETS.DEPTH": 18}, r"cannot be built \(18\): check .*MODEL.RESNETS"),  # DeepLab's has none
        ({"MODEL.RESNETS.NORM": "GN"}, "cannot be built .*divisible by num_groups"),
        ({"MODEL.SEM_SEG_HEAD.NORM": "BN"}, "tensors are missing, such as .*running_mean"),
        ({"MODEL.WEIGHTS": "n" * 300}, "does not exist"),
        (
            {"MODEL.META_ARCHITECTURE": "Mask2Former", "MODEL.SEM_SEG_HEAD.EMBEDDING_DIM": 69},
            "Mask2Former, which has classes of its own",
        ),
        ({"MODEL.META_ARCHITECTURE": "SemanticSegmentor"}, "SemanticSegmentor, which has classes of its own"),
        ({"MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead"}, "NAME is .*give a registered name; did you mean .*Head"),
        ({"MODEL.SEM_SEG_HEAD.NAME": "BasePixelDecoder"}, "NAME is .*such as OpenVocabMaskFormerHead"),
        ({"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "OpenVocabMaskFormerHead"}, "such as BasePixelDecoder"),
        ({"MODEL.DEVICE": "cuda:-1"}, "there is no device 'cuda:-1'"),
    ],
)
def test_models_that_cannot_be_built(monkeypatch, options, message):
    monkeypatch.chdir(REPO)
    with pytest.raises(OvsegError, match=message):
        Segmenter.from_config(TOY, opts={"MODEL.DEVICE": "cpu", **options})


@pytest.mark.parametrize("name", ["GeneralizedRCNN", "PanopticFPN"])
@pytest.mark.parametrize("command", [train, evaluate])
def test_models_of_detectron2_are_not_ours(tmp_path, command, name):
    with pytest.raises(OvsegError, match=f"META_ARCHITECTURE is '{name}'.*such as .*OVSeg"):
        command(load_cfg(TOY, {"MODEL.META_ARCHITECTURE": name, "OUTPUT_DIR": tmp_path}))


def test_everything_published_passes():
    files = [*REPO.glob("configs/*.yaml"), *REPO.glob("configs/toy/*_toy.yaml"), *REPO.glob("tests/data/*/config.yaml")]
    files = [file for file in files if file.parent.name != "ovsegmentor_tiny"]  # describes a recording
    files += [*REPO.glob("configs/*.yml"), *REPO.glob("configs/ovsegmentor/*.yml")]
    assert len(files) >= 19
    for file in files:
        assert load_cfg(file) == load_cfg(file)
    check_config(get_cfg())


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    "bomb": (BOMB, "aliases stand for more than"),
    "itself": ("a: &a [*a]", "an alias stands for itself"),
    "deep": ("a: " + "[" * 2000 + "]" * 2000, "levels of nesting"),
    "date": ("OUTPUT_DIR: 2024-99-99", "'2024-99-99' is no timestamp .*line 1"),
    "huge": (f"SOLVER: {{MAX_ITER: {'9' * 6000}}}", "is no int"),
    "twice": ("OUTPUT_DIR: a\nOUTPUT_DIR: b", "'OUTPUT_DIR' comes twice.*line 2"),
    "tab": ("MODEL:\n\tWEIGHTS: x", "cannot start any token.*line 2"),
    "zero": ("a\0b: 1", "special characters are not allowed"),
    "tag": ("a: !!int ''", "is no int"),
}
BAD_CONFIGS = {
    "list": ("- a", "must hold lines of KEY: VALUE"),
    "list for keys": ("MODEL: [1, 2]", r"MODEL is \[1, 2\]: it must hold keys"),
    "keys for value": ("MODEL: {WEIGHTS: {a: b}}", "it must be a value, not keys"),
    "number as key": ("MODEL: {1: 2}", "1 is no configuration key below MODEL"),
    "true date": ("OUTPUT_DIR: 2024-01-02", "OUTPUT_DIR is a date: write it in quotes"),
    "dotted": ("MODEL.WEIGHTS: x", "MODEL: {WEIGHTS: ...}"),
    "version": ("VERSION: two", "VERSION is 'two'"),
    "url": ("_BASE_: http://host/x.yaml", "download that file"),
    "self": ("_BASE_: bad.yaml", "is its own _BASE_"),
    "no base": ("_BASE_: nowhere.yaml", "no configuration file .*nowhere.yaml"),
    "folder": ("_BASE_: .", "Is a directory"),
    "numbers as base": ("_BASE_: [1]", "name a file"),
}


@pytest.mark.parametrize("name", [*BAD_YAML, *BAD_CONFIGS])
def test_files_that_mean_nothing(tmp_path, name):
    text, message = (BAD_YAML | BAD_CONFIGS)[name]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(OvsegError, match=message) as error:
        load_cfg(path)
    assert len(str(error.value)) < 600
    if name in BAD_YAML:
        with pytest.raises(OvsegError, match=message):
            read_plain_yaml(path, "data set file")


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes("OUTPUT_DIR: caf\xe9".encode("latin-1"))
    with pytest.raises(OvsegError, match=r"not text in UTF-8 \(byte 15\)"):
        load_cfg(path)
    path.write_bytes(b"\xef\xbb\xbfOUTPUT_DIR: out")
    assert load_cfg(path).OUTPUT_DIR == "out"
    path.write_bytes(b"# x\n" * 300_000)
    with pytest.raises(OvsegError, match="larger than 1 MiB"):
        load_cfg(path)


def test_bases_in_a_circle(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml")
    (tmp_path / "b.yaml").write_text("_BASE_: [a.yaml]")
    with pytest.raises(OvsegError, match=r"a\.yaml is its own _BASE_, by way of .*b\.yaml"):
        load_cfg(tmp_path / "a.yaml")


def test_long_values_are_cut():
    assert len(shown("x" * 10**6)) < 100 and len(shown([["x" * 999] * 999] * 999)) <= 200
    message = str(OvsegError(f"{'x' * 10**6}: do Z"))
    assert len(message) < LONGEST_MESSAGE + 10 and message.endswith(": do Z")


@pytest.mark.parametrize(
    ("line", "opts"),
    [
        ("--config-file c MODEL.WEIGHTS x --resume", ["MODEL.WEIGHTS", "x"]),
        ("MODEL.WEIGHTS x SEED -1 --config-file c --resume", ["MODEL.WEIGHTS", "x", "SEED", "-1"]),
        ("--config-file c --opts SEED 1 MODEL.WEIGHTS=x --resume", ["SEED", "1", "MODEL.WEIGHTS=x"]),
        ("--config-file c MODEL.WEIGHTS --resume", ["MODEL.WEIGHTS"]),
        ("--config-file c --resume MODEL.WEIGHT x", ["MODEL.WEIGHT", "x"]),
        ("--config-file c SOLVER.BASE_LR -1e-3 --resume", ["SOLVER.BASE_LR", "-1e-3"]),
    ],
)
def test_command_lines_of_training(line, opts):
    args = parse_with_options(train_parser(), line.split(), bare=True)
    assert (args.opts, args.config_file, args.resume) == (opts, "c", True)


def test_command_lines_of_the_demo(capsys):
    line = "--class-names a SEED --input TEST.JPG MODEL.WEIGHTS w y.png --opts SEED 1 --device cpu"
    args = parse_with_options(demo.build_parser(), line.split())
    assert (args.class_names, args.input, args.device) == (["a", "SEED"], ["TEST.JPG", "y.png"], "cpu")
    assert args.opts == ["MODEL.WEIGHTS", "w", "SEED", "1"]
    for stray in ("--device cpu stray", "--nonsense 3 MODEL.WEIGHTS x"):
        with pytest.raises(SystemExit):
            parse_with_options(demo.build_parser(), f"--class-names a --input x {stray}".split())
        assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpu", "0", "mps", "xpu", "cuda:99", "meta", "GPU", ""])
def test_devices_that_are_not_here(name, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(OvsegError, match=r"--device: .*(is not available|there is no device).*this machine has cpu"):
        find_device(name, "--device")
    if not name.startswith("cuda"):
        with pytest.raises(OvsegError):
            configured_device(name)
        with pytest.raises(OvsegError):
            choose_device(name, 1)
    assert find_device("cpu").type == "cpu"
