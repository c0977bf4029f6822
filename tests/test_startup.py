"""What commands import before their arguments are right, and what ``import ovseg`` registers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ovseg.cli.options import ALONE, SECTIONS, parse_with_options
from ovseg.config import get_cfg

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "detectron2", "open_clip", "cv2", "scipy", "supervision", "matplotlib")
DOORS = ["demo.py", "train_net.py", "main_demo.py", "main_seg.py", "main_pretrain.py"]
SCRIPTS = [*DOORS, *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("[dt]*s/*.py"))]
SCRIPTS = [name for name in SCRIPTS if not name.startswith(("docs/", "tests/"))]


def imported_by(*arguments: str) -> set[str]:
    """Roots of the modules that a command has imported when it ends, which it must do with 0 or 2."""
    command = [sys.executable, "-X", "importtime", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode in (0, 2), run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("argument", ["--help", "--no-such-option"])
def test_help_and_mistakes_import_nothing_that_takes_seconds(script, argument):
    assert not imported_by(script, argument).intersection(HEAVY)


@pytest.mark.parametrize("line", ["--help", "segment --help", "segment a --words missing.txt", "evaluate --nothing"])
def test_help_and_mistakes_of_the_ovseg_command(line):
    assert not imported_by("-m", "ovseg", *line.split()).intersection(HEAVY)


WRONG_FILES = (
    "-m ovseg segment a --words cat --model missing.yaml",
    "-m ovseg serve --model missing.yaml",
    "-m ovseg label a --words cat --model missing.yaml",
    "-m ovseg export --words cat --model missing.yaml",
    "-m ovseg evaluate --config-file missing.yaml",
    "train_net.py --config-file missing.yaml",
    "demo.py --config-file missing.yaml --class-names cat --input a",
    "tools/agreement.py --config missing.yaml --change A=1 --input a --words cat",
    "tools/benchmark.py --config missing.yaml",
    "tools/search_thresholds.py --config-file missing.yaml",
    "tools/tune_text_prompts.py --config-file missing.yaml",
    "tools/mine_mask_text_pairs.py --config-file missing.yaml --data toy:train --output x",
    "tools/mine_mask_text_pairs.py --config-file photo --data missing.csv --output x",
    "tools/make_pseudo_masks.py --config-file missing.yaml --data photos --output x",
    "tools/extract_features.py --config-file missing.yaml --input a.jpg --output x",
    "tools/extract_caption_words.py --config-file missing.yaml --output x.jsonl",
    "tools/convert_checkpoint.py missing.pth out.safetensors",
)


@pytest.mark.parametrize("line", WRONG_FILES)
def test_missing_files_are_named_before_anything_slow_is_imported(line):
    run = subprocess.run([sys.executable, *line.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "error: " in run.stderr and "missing." in run.stderr
    assert not imported_by(*line.split()).intersection(HEAVY)


def test_help_and_mistakes_of_the_toy_world():
    assert not imported_by("-m", "ovseg.toy", "--help").intersection(HEAVY)
    assert not imported_by("-m", "ovseg.toy", "--output", "x", "--first", "999").intersection(HEAVY)


REGISTERED = """
import ovseg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
META_ARCH_REGISTRY.get("OVSeg"), META_ARCH_REGISTRY.get("SCANDEMO")
SEM_SEG_HEADS_REGISTRY.get("OpenVocabMaskFormerHead"), BACKBONE_REGISTRY.get("D2SwinTransformer")
assert "pascalvoc20_sem_seg_val" in DatasetCatalog.list()
assert len(MetadataCatalog.get("ade20k_full_sem_seg_val").stuff_classes) == 847
"""


@pytest.mark.parametrize("place", ["-c", "script", "a command's name"])
def test_import_ovseg_registers_in_programs_of_others(tmp_path, place):
    script = tmp_path / ("demo.py" if place == "a command's name" else "script.py")
    script.write_text(REGISTERED)
    arguments = ["-c", REGISTERED] if place == "-c" else [str(script)]
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


# what import ovseg adds to the packages that it stands on
ADDED = """
import sys
import torch, torchvision, open_clip, detectron2.data, detectron2.modeling, detectron2.engine
before = set(sys.modules)
import ovseg
added = {name.partition(".")[0] for name in sys.modules.keys() - before}
slow = {"matplotlib", "pandas", "rich", "scipy", "sklearn", "skimage", "supervision", "transformers", "typer"} & added
assert not slow, slow
"""


def test_import_ovseg_imports_nothing_slow_but_what_it_stands_on():
    subprocess.run([sys.executable, "-c", ADDED], check=True, cwd=ROOT)


def test_the_form_of_keys():
    cfg = get_cfg()
    assert {key for key, value in cfg.items() if isinstance(value, dict)} == set(SECTIONS)
    assert {key for key, value in cfg.items() if not isinstance(value, dict)} <= set(ALONE)


def test_files_in_the_form_of_keys_are_files(here):
    import demo

    (here / "MODEL.X").touch()
    line = [
        "--class-names",
        "U.S.A",
        "--input",
        "TEST.JPG",
        "MODEL.X",
        "INPUT.MP4",
        "TEST.PER_DATASET.a.MASK_THR",
        "0.2",
        "b.png",
    ]
    args = parse_with_options(demo.build_parser(), line)
    assert args.input == ["TEST.JPG", "MODEL.X", "INPUT.MP4", "b.png"] and args.class_names == ["U.S.A"]
    assert args.opts == ["TEST.PER_DATASET.a.MASK_THR", "0.2"]
