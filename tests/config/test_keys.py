from __future__ import annotations

import pytest

from ovseg.config import DEFAULTS, WITHOUT_EFFECT, get_cfg, load_cfg, refuse_keys_without_effect
from ovseg.errors import OvsegError

OLD_STYLE = """
MODEL:
  META_ARCHITECTURE: OVSeg
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]
VERSION: 2
"""


def write(path, text):
    path.write_text(text)
    return path


def test_defaults_are_there():
    cfg = get_cfg()
    assert cfg.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT == 0.7
    assert cfg.SOLVER.POLY_LR_POWER == 0.9  # DeepLab's
    assert cfg.MODEL.MASK_FORMER.TEST.PAINTING == "mask_sum"
    assert get_cfg() is not cfg
    assert all(part.isidentifier() for key in DEFAULTS for part in key.split("."))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OLD_STYLE, r"line 5: YAML that runs code is refused.*write the plain list instead: \[320, 384, .*, 1280\]"),
        ("A: !!python/object/apply:os.system ['true']", "YAML that runs code is refused"),
        (
            "MODEL:\n  SWIN:\n    EMBED_DIMM: 3\nVERSION: 2",
            "unknown configuration key MODEL.SWIN.EMBED_DIMM in .*did you mean",
        ),
        ("MODEL: [", "is not valid YAML"),
        (
            "MODEL:\n  SWIN:\n    EMBED_DIM: wide\nVERSION: 2",
            "MODEL.SWIN.EMBED_DIM is 'wide': it must be a whole number",
        ),
        ("_BASE_: nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(OvsegError, match=message):
        load_cfg(write(tmp_path / "bad.yaml", text))


def test_code_in_a_file_is_not_run(tmp_path):
    marker = tmp_path / "was_run"
    text = f"A: !!python/object/apply:os.mkdir ['{marker}']"
    with pytest.raises(OvsegError):
        get_cfg().merge_from_file(write(tmp_path / "bad.yaml", text), allow_unsafe=True)
    assert not marker.exists()


def test_missing_file():
    with pytest.raises(OvsegError, match=r"nowhere.yaml.*check the path"):
        load_cfg("nowhere.yaml")


@pytest.mark.parametrize("opts", [["MODEL.WEIGHT", "x"], ["MODEL.WEIGHTS"], ["SOLVER.BASE_LR", "fast"]])
def test_bad_options(opts):
    with pytest.raises(OvsegError, match="the KEY VALUE options"):
        get_cfg().merge_from_list(opts)


def test_options_as_the_original_writes_them():
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TEST", '("ade20k_sem_seg_val",)', "MODEL.CLIP_ADAPTER.MASK_THR", "0.35"])
    assert cfg.DATASETS.TEST == ("ade20k_sem_seg_val",)
    assert cfg.MODEL.CLIP_ADAPTER.MASK_THR == 0.35


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_keys_without_effect_are_refused(key):
    cfg = get_cfg()
    refuse_keys_without_effect(cfg)
    *parents, name = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    value = node[name]
    node[name] = not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1
    with pytest.raises(OvsegError, match=f"{key} = .* has no effect"):
        refuse_keys_without_effect(cfg)


@pytest.mark.parametrize("name", ["ZegFormer", "LSegPlus", "OpenSeg", "DenseCLIP"])
def test_keys_that_a_system_does_not_read(name):
    opts = ["MODEL.META_ARCHITECTURE", name, "MODEL.FUSION.VOID_BY_CLIP", 0.5]
    cfg = get_cfg()
    cfg.merge_from_list(opts)
    with pytest.raises(OvsegError, match=r"VOID_BY_CLIP = 0\.5 has no effect in this system.* only OVSeg, SCAN"):
        refuse_keys_without_effect(cfg)
