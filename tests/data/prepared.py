"""The miniature data sets, and the scripts that prepare them, for tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.scripts import load_script

MINIATURES = Path(__file__).with_name("miniatures")

# script, miniature, options that make all it can
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ade20k_150": ("ade20k_150", ()),
    "ade20k_847": ("ade20k_847", ("--splits", "training", "validation")),
    "coco_stuff": ("coco", ("--split", "156-15", "--background")),
    "coco_object": ("coco", ()),
    "coco_panoptic": ("coco", ()),
    "voc": ("pascal_voc", ()),
    "pascal_context": ("pascal_context", ("--classes", "59", "459", "59-alphabetical", "60")),
    "cityscapes": ("cityscapes", ()),
}


def copy_miniature(name: str, folder: Path) -> Path:
    """A miniature as a root that may be written to."""
    root = folder / name
    if name == "cityscapes":
        make_cityscapes(root)
    else:
        shutil.copytree(MINIATURES / name, root)
    return root


def make_cityscapes(root: Path) -> None:
    """Two pictures; there is no miniature of this data set, its labels are all of 0..33 once."""
    for split, city in (("train", "aachen"), ("val", "lindau")):
        name = f"{city}/{city}_000000_000019"
        save(root / f"cityscapes/leftImg8bit/{split}/{name}_leftImg8bit.png", np.zeros((2, 17, 3), np.uint8))
        labels = np.arange(34, dtype=np.uint8).reshape(2, 17)
        save(root / f"cityscapes/gtFine/{split}/{name}_gtFine_labelIds.png", labels)


def script(name: str) -> Callable[..., int]:
    """``main`` of ``datasets/prepare_<name>.py``, its arguments given one by one."""
    main = load_script(f"datasets/prepare_{name}.py").main
    return lambda *arguments: main([str(argument) for argument in arguments])


def prepare(name: str, root: Path, *arguments: str) -> int:
    """Run a script on its miniature, with the options of :data:`RUNS`."""
    return script(name)("--root", root, "--workers", "2", *RUNS[name][1], *arguments)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def snapshot(root: Path) -> dict[str, int]:
    """Time of change, in ns, of every file below a folder but the lock that a run takes."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}
