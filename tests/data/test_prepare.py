"""Every script of datasets/ on its miniature."""

from __future__ import annotations

import importlib.machinery
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks
from scipy.io import savemat

from ovseg.data import benchmarks
from ovseg.errors import OvsegError
from tests.data.prepared import MINIATURES, RUNS, copy_miniature, load, prepare, save, script, snapshot
from tests.scripts import REPO, load_script

SCRIPTS = REPO / "datasets"
CONTEXT = "VOCdevkit/VOC2010/annotations_detectron2"
VOC = "VOCdevkit/VOC2012"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(MINIATURES / "expected.npz") as content:
        return dict(content)


def of_script(name: str, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a script must write below the root: the other projects' arrays, at our places."""
    miniature = RUNS[name][0]
    mine = {key.partition("/")[2]: array for key, array in expected.items() if key.startswith(f"{miniature}/")}
    if name == "coco_object":
        return {
            f"coco/{key.replace('_instanceTrainIds', '')}": array
            for key, array in mine.items()
            if key.startswith("coco_object/")
        }
    if name.startswith("coco"):
        begin = {"coco_stuff": "coco/stuffthingmaps_detectron2/", "coco_panoptic": "coco/panoptic_"}[name]
        return {key: array for key, array in mine.items() if key.startswith(begin)}
    if name == "voc":
        # the other projects put the augmented training set into `train`; it is a folder of its own here
        placed = {key.replace("pascal21/", f"{VOC}/annotations_detectron2_21/"): array for key, array in mine.items()}
        augmented = f"{VOC}/annotations_detectron2/train/2008_000015.png"
        return {key.replace("/train/", "/train_aug/") if key == augmented else key: a for key, a in placed.items()}
    if name == "pascal_context":
        return {_context_place(key): array for key, array in mine.items()}
    if name == "cityscapes":
        train_ids = np.full(34, 255, np.uint8)
        train_ids[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = np.arange(19)
        places = ("train/aachen/aachen_000000_000019", "val/lindau/lindau_000000_000019")
        return {f"cityscapes/gtFine/{place}_gtFine_labelTrainIds.png": train_ids.reshape(2, 17) for place in places}
    return mine


def _context_place(key: str) -> str:
    name = Path(key).name
    if key.startswith("alphabetical/"):
        return f"{CONTEXT}/{key.replace('alphabetical/pc59', 'pc59_alphabetical')}"
    if key.startswith("mmseg60/"):
        return f"{CONTEXT}/pc60_{'train' if name == '2008_000900.png' else 'val'}/{name}"
    return key


@pytest.mark.parametrize("name", RUNS)
def test_output_and_second_run(name, expected, tmp_path, monkeypatch, capsys):
    root = copy_miniature(RUNS[name][0], tmp_path)
    raw = snapshot(root)
    assert prepare(name, root) == 0
    wanted = of_script(name, expected)
    for place, array in wanted.items():
        labels = load(root / place)
        assert labels.dtype == array.dtype and labels.shape == array.shape, place
        np.testing.assert_array_equal(labels, array, err_msg=place)
    written = {place for place in snapshot(root) if place not in raw and Path(place).name[0] != "."}
    if name == "voc":  # the miniature expects less of the augmented training set than there is
        wanted |= {place: None for place in written if "/train_aug/" in place}
        assert sum("/train_aug/" in place for place in wanted) == 6
    if name == "coco_stuff":  # nor the labels with a background
        wanted |= {place: None for place in written if "_background/" in place}
    if name == "ade20k_847":
        wanted |= {place.replace("annotations", "images").replace(".tif", ".jpg"): None for place in list(wanted)}
    assert written == wanted.keys()

    def refuse(*args, **kwargs):
        raise AssertionError("the second run decodes something")

    before = snapshot(root)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        patch.setattr("scipy.io.loadmat", refuse)
        patch.setattr(masks, "decode", refuse)
        assert prepare(name, root) == 0
    assert snapshot(root) == before
    assert "everything is there already" in capsys.readouterr().out
    assert prepare(name, root, "--verify") == 1
    shown = capsys.readouterr().out
    assert "incomplete" in shown and "WRONG" not in shown
    assert prepare(name, root, "--verify", "--partial") == 0


def test_the_number_of_expected_arrays(expected):
    names = [name for name in RUNS if name != "cityscapes"]
    assert len(expected) == sum(len(of_script(name, expected)) for name in names) == 63


def test_coco_object_with_the_names_of_groupvit(expected, tmp_path):
    root = copy_miniature("coco", tmp_path)
    prepare("coco_object", root, "--groupvit-names")
    for key, array in expected.items():
        if key.startswith("coco/coco_object/"):
            labels = load(root / key.replace("coco/coco_object", "coco/coco_object_groupvit"))
            np.testing.assert_array_equal(labels, array)


def test_pascal_context_from_the_detail_json(expected, tmp_path):
    root = copy_miniature("pascal_context", tmp_path)
    (root / "VOCdevkit/VOC2010/ImageSets/SegmentationContext/train.txt").unlink()  # the JSON tells the splits, too
    script("pascal_context")("--root", root, "--detail", "--classes", "59", "59-alphabetical", "60")
    places = {key: a for key, a in of_script("pascal_context", expected).items() if "pc459" not in key}
    assert len(places) == 12
    for place, array in places.items():
        np.testing.assert_array_equal(load(root / place), array, err_msg=place)
    with pytest.raises(OvsegError, match="lacks the 459 classes"):
        script("pascal_context")("--root", root, "--detail", "--classes", "459")


def test_pascal_context_train_is_what_is_not_in_val(expected, tmp_path):
    root = copy_miniature("pascal_context", tmp_path)
    (root / "VOCdevkit/VOC2010/ImageSets/SegmentationContext/train.txt").unlink()
    prepare("pascal_context", root, "--splits", "train")
    assert [path.name for path in sorted((root / CONTEXT / "pc459_train").glob("*.tif"))] == ["2008_000900.tif"]


def test_ade20k_847_by_its_index(expected, tmp_path):
    root = copy_miniature("ade20k_847", tmp_path)
    prepare("ade20k_847", root, "--index")
    for place, array in of_script("ade20k_847", expected).items():
        np.testing.assert_array_equal(load(root / place), array, err_msg=place)
    (root / "ADE20K_2021_17_01/index_ade20k.pkl").unlink()
    with pytest.raises(OvsegError, match=r"index .*index_ade20k\.pkl is missing(.|\n)*<group>/<scene>"):
        prepare("ade20k_847", root, "--index")


def test_ade20k_847_images(tmp_path):
    root = copy_miniature("ade20k_847", tmp_path)
    prepare("ade20k_847", root)
    base = root / "ADE20K_2021_17_01"
    small = base / "images/ADE/validation/urban/street/ADE_val_00000001.jpg"
    assert (base / "images_detectron2/validation" / small.name).read_bytes() == small.read_bytes()
    assert min(load(base / "images_detectron2/validation/ADE_val_00000003.jpg").shape[:2]) == 512


@pytest.mark.parametrize(("size", "expected"), [((512, 900), (512, 900)), ((600, 513), (599, 512)), ((9, 4), (9, 4))])
def test_ade20k_847_sizes(size, expected):
    assert load_script("datasets/prepare_ade20k_847.py").output_size(*size) == expected


def test_voc_without_the_augmented_masks(expected, tmp_path):
    root = copy_miniature("pascal_voc", tmp_path)
    for path in (root / VOC / "SegmentationClassAug").iterdir():
        path.unlink()
    (root / VOC / "SegmentationClassAug").rmdir()
    prepare("voc", root, "--classes", "20")
    places = [key for key in of_script("voc", expected) if "annotations_detectron2/" in key and "_aug" not in key]
    for place in places:
        np.testing.assert_array_equal(load(root / place), of_script("voc", expected)[place], err_msg=place)
    with pytest.raises(OvsegError, match="SegmentationClassAug is missing"):
        prepare("voc", root, "--splits", "train_aug")
    (root / VOC / "SegmentationClass/2007_000042.png").unlink()
    with pytest.raises(OvsegError, match=r"labels of 2007_000042 are missing \(1 of 3 names\).*SegmentationClassAug"):
        prepare("voc", root)


def test_the_augmented_training_set_without_its_list(tmp_path):
    root = copy_miniature("pascal_voc", tmp_path)
    (root / VOC / "ImageSets/SegmentationAug/train_aug.txt").unlink()
    prepare("voc", root, "--splits", "train_aug")
    made = sorted(path.stem for path in (root / VOC / "annotations_detectron2_21/train_aug").glob("*.png"))
    assert made == ["2007_000032", "2008_000015"]


def raw_of_one(name: str, root: Path) -> Path:
    """One raw label file of a miniature."""
    return next(
        root / place
        for place in (
            "ADEChallengeData2016/annotations/validation/ADE_val_00000002.png",
            "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000001_seg.png",
            f"{VOC}/SegmentationClassAug/2007_000033.png",
            "VOCdevkit/VOC2010/trainval/2008_000001.mat",
            "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
            "coco/panoptic_val2017/000000000139.png" if name == "coco_panoptic" else "-",
            "coco/stuffthingmaps/val2017/000000000139.png",
        )
        if (root / place).is_file()
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_damaged_annotation_is_named_and_the_others_are_done(name, tmp_path):
    root = copy_miniature(RUNS[name][0], tmp_path)
    path = raw_of_one(name, root)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OvsegError, match=rf"{path.name}.*unpack its archive again.*all else is done") as caught:
        prepare(name, root)
    assert str(caught.value).count("\n") == 0
    path.write_bytes(whole)
    assert prepare(name, root) == 0
    assert prepare(name, root, "--verify", "--partial") == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ade20k_150", 151, r"holds the value 151, expected are 0\.\.150"),
        ("coco_stuff", 182, r"holds the value 182, expected are 0\.\.181 and 255"),
        ("coco_object", 200, r"holds the value 200, expected are 0\.\.181 and 255"),
        ("voc", 21, r"holds the value 21, expected are 0\.\.20 and 255"),
        ("cityscapes", 34, r"holds the value 34, expected are 0\.\.33"),
        ("ade20k_847", 255, r"holds the value 6655, expected are 0\.\.3688"),
        ("coco_panoptic", 255, r"has the segment 16777215, which .*panoptic_val2017\.json does not list: unpack"),
    ],
)
def test_labels_out_of_range(name, value, message, tmp_path):
    root = copy_miniature(RUNS[name][0], tmp_path)
    path = raw_of_one(name, root)
    raw = load(path)
    raw[0, 0] = value
    save(path, raw)
    with pytest.raises(OvsegError, match=rf"{path.name} {message}"):
        prepare(name, root)


def test_pascal_context_labels_out_of_range(tmp_path):
    root = copy_miniature("pascal_context", tmp_path)
    savemat(root / "VOCdevkit/VOC2010/trainval/2008_000001.mat", {"LabelMap": np.full((2, 2), 460, np.uint16)})
    with pytest.raises(OvsegError, match=r"2008_000001\.mat holds the value 460, expected are 0\.\.459"):
        prepare("pascal_context", root)


@pytest.mark.parametrize("name", RUNS)
def test_a_wrong_root_shows_the_tree(name, tmp_path):
    tree = load_script(f"datasets/prepare_{name}.py").TREE.strip()
    for more in ((), ("--verify",)):
        with pytest.raises(OvsegError) as caught:
            prepare(name, tmp_path, *more)
        assert str(caught.value).endswith(tree) and str(tmp_path) in str(caught.value)
    root = copy_miniature(RUNS[name][0], tmp_path)
    inside = next(path for path in root.iterdir() if path.is_dir())
    with pytest.raises(OvsegError, match=rf"--root {root}\. "):
        prepare(name, inside)


def test_a_data_set_without_files(tmp_path):
    (tmp_path / "ADEChallengeData2016/annotations/validation").mkdir(parents=True)
    with pytest.raises(OvsegError, match=r"no file in .*annotations/validation ends with \.png"):
        prepare("ade20k_150", tmp_path)
    with pytest.raises(OvsegError, match=r"annotations/training is missing"):
        prepare("ade20k_150", tmp_path, "--splits", "training")


@pytest.mark.parametrize("name", RUNS)
def test_status_of_the_command_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"prepare_{name}.py", "--root", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / f"prepare_{name}.py"), run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    prepare(name, root := copy_miniature(RUNS[name][0], tmp_path))
    monkeypatch.setattr(sys, "argv", [f"prepare_{name}.py", "--root", str(root), "--verify"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / f"prepare_{name}.py"), run_name="__main__")
    assert stop.value.code == 1


def test_panoptic_json_that_is_none(tmp_path):
    root = copy_miniature("coco", tmp_path)
    path = root / "coco/annotations/panoptic_val2017.json"
    path.write_text('{"images": []}')
    with pytest.raises(OvsegError, match=r"panoptic_val2017\.json is not COCO's panoptic JSON \(KeyError"):
        prepare("coco_panoptic", root, "--splits", "val2017")


def test_coco_stuff_with_a_background(tmp_path):
    """Everything that is no class of the 171 is 0, and they follow it."""
    root = copy_miniature("coco", tmp_path)
    assert prepare("coco_stuff", root) == 0
    folder = root / "coco/stuffthingmaps_detectron2"
    files = sorted((folder / "train2017_background").glob("*.png"))
    assert len(files) == 3 > len(list((folder / "train2017").glob("*.png")))
    for path in files:
        labels = load(path)
        if (without := folder / "train2017" / path.name).exists():
            np.testing.assert_array_equal(labels, load(without) + 1)  # 255 + 1 is 0 in uint8
        else:
            assert not labels.any()


def test_detail_json_that_is_none(tmp_path):
    root = copy_miniature("pascal_context", tmp_path)
    (root / "VOCdevkit/VOC2010/trainval_merged.json").write_text("[]")
    with pytest.raises(OvsegError, match=r"trainval_merged\.json is not the Detail API's JSON"):
        script("pascal_context")("--root", root, "--detail")


def test_every_script_is_known_to_the_catalog_and_in_the_readme():
    readme = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    scripts = {f"datasets/{path.name}" for path in SCRIPTS.glob("*.py")}
    named = {dataset.script for dataset in benchmarks.DATASETS if dataset.script}
    assert named == scripts - {"datasets/check_captions.py", "datasets/data_process_cc12m.py"}
    assert all(f"python {name}" in readme for name in scripts)
    headings = {line[3:].strip() for line in readme.splitlines() if line.startswith("## ")}
    assert {dataset.section for dataset in benchmarks.DATASETS} <= headings


def test_no_package_is_called_datasets():
    """That is Hugging Face's name."""
    found = importlib.machinery.PathFinder.find_spec("datasets", [str(REPO)])
    assert found is None or found.origin is None  # a regular package is where its __init__.py is
    assert '[tool.setuptools.packages.find]\ninclude = ["ovseg*"]\n' in (REPO / "pyproject.toml").read_text()
