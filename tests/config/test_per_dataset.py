"""TEST.PER_DATASET: what wins over what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import ovseg  # noqa: F401 - registers the data sets
from ovseg.config import get_cfg, load_cfg
from ovseg.config.per_dataset import config_of, settings_of
from ovseg.data.catalog import check_per_dataset
from ovseg.errors import OvsegError

CONFIGS = Path(__file__).parents[2] / "configs"
ADE, VOC = "ade20k_sem_seg_val", "pascalvoc20_sem_seg_val"
THR, WEIGHT = "MODEL.CLIP_ADAPTER.MASK_THR", "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT"
BASE = f"""
MODEL: {{CLIP_ADAPTER: {{MASK_THR: 0.4, CLIP_ENSEMBLE_WEIGHT: 0.7}}}}
TEST:
  PER_DATASET:
    {ADE}: {{MASK_THR: 0.3, CLIP_ENSEMBLE_WEIGHT: 0.6}}
    {VOC}: {{CLIP_ENSEMBLE_WEIGHT: 0.45}}
VERSION: 2
"""


@pytest.fixture
def base(tmp_path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def derived(base: Path, text: str) -> Path:
    path = base.with_name("derived.yaml")
    path.write_text(f"_BASE_: base.yaml\n{text}\nVERSION: 2\n")
    return path


def test_entries_win_over_the_keys_of_their_own_file(base):
    cfg = load_cfg(base)
    check_per_dataset(cfg)
    assert settings_of(cfg, ADE) == {"MASK_THR": 0.3, "CLIP_ENSEMBLE_WEIGHT": 0.6}
    assert settings_of(cfg, VOC) == {"CLIP_ENSEMBLE_WEIGHT": 0.45}
    assert settings_of(cfg, "toy_sem_seg_val") == {}
    assert get_cfg().TEST.PER_DATASET == {}  # nothing is shared


def test_an_alias_has_the_entry_of_what_it_stands_for_unless_it_has_its_own(base):
    alias = "openvocab_ade20k_sem_seg_val"
    assert settings_of(load_cfg(base), alias) == settings_of(load_cfg(base), ADE)
    own = load_cfg(base, [f"TEST.PER_DATASET.{alias}.MASK_THR", "0.2"])
    assert settings_of(own, alias) == {"MASK_THR": 0.2}


def test_the_threshold_of_background_of_ovsegmentor(base):
    entries = f"TEST: {{PER_DATASET: {{{ADE}: {{BG_THRESH: 0.35}}}}}}"
    path = derived(base, entries)
    cfg = load_cfg(path)
    assert settings_of(cfg, ADE) == {"MASK_THR": 0.3, "CLIP_ENSEMBLE_WEIGHT": 0.6, "BG_THRESH": 0.35}
    assert config_of(cfg, ADE).MODEL.OVSEGMENTOR.BG_THRESH == 0.35 and cfg.MODEL.OVSEGMENTOR.BG_THRESH == 0.95
    again = load_cfg(path, ["MODEL.OVSEGMENTOR.BG_THRESH", "0.5"])
    assert "BG_THRESH" not in settings_of(again, ADE) and config_of(again, ADE).MODEL.OVSEGMENTOR.BG_THRESH == 0.5
    path.write_text(path.read_text() + "MODEL: {OVSEGMENTOR: {BG_THRESH: 0.6}}\n")
    assert settings_of(load_cfg(path), ADE)["BG_THRESH"] == 0.35, "set together"


def test_the_path_of_a_yaml_file_may_have_an_entry(base):
    cfg = load_cfg(base, ["TEST.PER_DATASET", "{data/mine.yaml: {MASK_THR: 0.2}}"])
    check_per_dataset(cfg)
    assert settings_of(cfg, "data/mine.yaml") == {"MASK_THR": 0.2}


def test_the_command_line_takes_entries_back(base):
    cfg = load_cfg(base, [WEIGHT, "0.8"])
    assert settings_of(cfg, ADE) == {"MASK_THR": 0.3} and settings_of(cfg, VOC) == {}
    assert cfg.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT == 0.8


def test_what_is_written_down_says_the_same_when_it_is_read(base, tmp_path):
    cfg = load_cfg(base, [WEIGHT, "0.8"])
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    again = load_cfg(tmp_path / "dumped.yaml")
    assert again.TEST == cfg.TEST and again.MODEL.CLIP_ADAPTER == cfg.MODEL.CLIP_ADAPTER
    assert settings_of(again, ADE) == {"MASK_THR": 0.3}


def test_a_file_over_its_base_takes_entries_back_but_not_its_own(base):
    plain = load_cfg(derived(base, "MODEL: {CLIP_ADAPTER: {MASK_FILL: zero}}"))
    assert settings_of(plain, ADE) == settings_of(load_cfg(base), ADE)
    cfg = load_cfg(
        derived(
            base,
            f"MODEL: {{CLIP_ADAPTER: {{CLIP_ENSEMBLE_WEIGHT: 0.0}}}}\n"
            f"TEST: {{PER_DATASET: {{{VOC}: {{CLIP_ENSEMBLE_WEIGHT: 0.2}}}}}}",
        )
    )
    assert settings_of(cfg, ADE) == {"MASK_THR": 0.3}
    assert settings_of(cfg, VOC) == {"CLIP_ENSEMBLE_WEIGHT": 0.2}


def test_single_entries_on_the_command_line(base):
    opts = [
        THR,
        "0.5",
        f"TEST.PER_DATASET.{VOC}.MASK_THR",
        "0.25",
        f"TEST.PER_DATASET.{ADE}.CLIP_ENSEMBLE_WEIGHT",
        "1.0",
    ]
    cfg = load_cfg(base, opts)
    assert settings_of(cfg, ADE) == {"CLIP_ENSEMBLE_WEIGHT": 1.0}
    assert settings_of(cfg, VOC) == {"CLIP_ENSEMBLE_WEIGHT": 0.45, "MASK_THR": 0.25}
    cfg = load_cfg(base, ["TEST.PER_DATASET.toy_sem_seg_val.MASK_THR", "0.1"])
    assert settings_of(cfg, "toy_sem_seg_val") == {"MASK_THR": 0.1}


@pytest.mark.parametrize(
    "text", [f"{{{VOC}: {{MASK_THR: 0.2}}}}", f"{{'{VOC}': {{'MASK_THR': 0.2}}}}", f'{{"{VOC}": {{"MASK_THR": 0.2}}}}']
)
def test_the_whole_mapping_on_the_command_line(base, text):
    cfg = load_cfg(base, ["TEST.PER_DATASET", text])
    assert cfg.TEST.PER_DATASET == {VOC: {"MASK_THR": 0.2}}
    cfg.merge_from_list([f"TEST.PER_DATASET.{ADE}.MASK_THR", 0.9, f"TEST.PER_DATASET.{VOC}.CLIP_ENSEMBLE_WEIGHT", 0.9])
    assert settings_of(cfg, ADE) == {"MASK_THR": 0.9}
    assert settings_of(cfg, VOC) == {"MASK_THR": 0.2, "CLIP_ENSEMBLE_WEIGHT": 0.9}
    assert load_cfg(base, ["TEST.PER_DATASET", "{}"]).TEST.PER_DATASET == {}


def test_several_files_fill_one_entry(base, tmp_path):
    cfg = load_cfg(base)
    (tmp_path / "more.yaml").write_text(f"TEST: {{PER_DATASET: {{{VOC}: {{MASK_THR: 0.2}}}}}}\nVERSION: 2")
    cfg.merge_from_file(tmp_path / "more.yaml")
    assert settings_of(cfg, VOC) == {"CLIP_ENSEMBLE_WEIGHT": 0.45, "MASK_THR": 0.2}


def test_the_configuration_of_one_data_set(base):
    cfg = load_cfg(base)
    cfg.freeze()
    ade, toy = config_of(cfg, ADE), config_of(cfg, "toy_sem_seg_val")
    assert (ade.MODEL.CLIP_ADAPTER.MASK_THR, ade.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT) == (0.3, 0.6)
    assert (toy.MODEL.CLIP_ADAPTER.MASK_THR, toy.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT) == (0.4, 0.7)
    assert ade.is_frozen() and ade.TEST.PER_DATASET == {} and settings_of(cfg, ADE)
    assert yaml.safe_load(ade.dump())["MODEL"]["CLIP_ADAPTER"]["MASK_THR"] == 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ade20k_sem_seg_vall: {MASK_THR: 0.4}}", "'ade20k_sem_seg_vall'.*did you mean ade20k_sem_seg_val"),
        ("{nothing_like_it: {MASK_THR: 0.4}}", "no such data set; register it first"),
        (f"{{{ADE}: {{MASK_THRESHOLD: 0.4}}}}", "sets MASK_THRESHOLD: only MASK_THR, CLIP_ENSEMBLE_WEIGHT"),
        (f"{{{ADE}: {{MASK_FILL: zero}}}}", "sets MASK_FILL: only MASK_THR"),
        (f"{{{ADE}: {{MASK_THR: 4}}}}", "MASK_THR is 4: use a number from 0 to 1"),
        (f"{{{ADE}: {{MASK_THR: high}}}}", "MASK_THR is 'high'"),
        (f"{{{ADE}: {{CLIP_ENSEMBLE_WEIGHT: True}}}}", "CLIP_ENSEMBLE_WEIGHT is True"),
        (f"{{{ADE}: 0.4}}", r"is 0\.4: write"),
        (f"{{{ADE}: }}", "is None: write"),
    ],
)
def test_entries_that_cannot_work(base, text, message):
    with pytest.raises(OvsegError, match=message):
        check_per_dataset(load_cfg(base, ["TEST.PER_DATASET", text]))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TEST.PER_DATASET", "0.4"], "TEST.PER_DATASET is 0.4: write"),
        (["TEST.PER_DATASET", "{a: ["], "is not valid YAML"),
        (["TEST.PER_DATASET"], "must be pairs of KEY and VALUE"),
        ([f"TEST.PER_DATASET.{ADE}.MASK_FILL", "zero"], "unknown configuration key TEST.PER_DATASET"),
    ],
)
def test_options_that_cannot_work(base, opts, message):
    with pytest.raises(OvsegError, match=message):
        load_cfg(base, opts)


SCAN = {  # MASK_THR, CLIP_ENSEMBLE_WEIGHT, REPLACE_RATIO; SCAN's specification, section 2
    "scan_vitL": {
        "ade20k_full_sem_seg_val": (0.3, 0.75, 0.15),
        ADE: (0.55, 0.75, 0.05),
        "pascal_context_459_sem_seg_val": (0.25, 0.65, 0.05),
        "pascal_context_59_sem_seg_val": (0.5, 0.5, 0.05),
        VOC: (0.2, 0.65, 0.1),
    },
    "scan_vitB": {
        "ade20k_full_sem_seg_val": (0.25, 0.75, 0.05),
        ADE: (0.4, 0.7, 0.05),
        "pascal_context_459_sem_seg_val": (0.25, 0.7, 0.05),
        "pascal_context_59_sem_seg_val": (0.25, 0.35, 0.05),
        VOC: (0.2, 0.45, 0.1),
    },
}


@pytest.mark.parametrize("name", SCAN)
def test_the_published_settings_of_scan(name):
    cfg = load_cfg(CONFIGS / f"{name}.yaml")
    check_per_dataset(cfg)
    for dataset, expected in SCAN[name].items():
        adapter = config_of(cfg, dataset).MODEL.CLIP_ADAPTER
        assert expected == (adapter.MASK_THR, adapter.CLIP_ENSEMBLE_WEIGHT, adapter.REPLACE_RATIO)
    opts = ["MODEL.CLIP_ADAPTER.REPLACE_RATIO", "0.05", WEIGHT, "0.75", THR, "0.55"]  # the published command
    assert load_cfg(CONFIGS / f"{name}.yaml", opts).TEST.PER_DATASET == {}


def test_the_published_settings_of_ovseg():
    """Specification 10.4: CLIP's weight; the demo and the toy world have their own for everything."""
    weights = {
        ADE: 0.7,
        "ade20k_full_sem_seg_val": 0.7,
        "pascal_context_59_sem_seg_val": 0.6,
        "pascal_context_459_sem_seg_val": 0.6,
        VOC: 0.45,
    }
    for name, threshold in (("ovseg_swinB_vitL_bs32_120k", 0.4), ("ovseg_R101c_vitB_bs32_120k", 0.5)):
        cfg = load_cfg(CONFIGS / f"{name}.yaml")
        check_per_dataset(cfg)
        for dataset, weight in weights.items():
            adapter = config_of(cfg, dataset).MODEL.CLIP_ADAPTER
            assert (threshold, weight) == (adapter.MASK_THR, adapter.CLIP_ENSEMBLE_WEIGHT)
    for name, weight in (("ovseg_swinB_vitL_demo", 0.0), ("toy/ovseg_toy", 0.3)):
        cfg = load_cfg(CONFIGS / f"{name}.yaml")
        assert {config_of(cfg, dataset).MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT for dataset in weights} == {weight}
