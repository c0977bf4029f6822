from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from PIL import Image

from ovseg.data import catalog
from ovseg.data.benchmarks import DATASETS, SemSegDataset, find_dataset
from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set

README = Path(__file__).parents[2] / "datasets" / "README.md"


ALL_NAMES = [name for dataset in DATASETS for name in (dataset.name, *dataset.aliases)]


@pytest.fixture
def empty_catalog():
    """The names of our data sets free for registration; what was there comes back afterwards."""
    before = {name: DatasetCatalog[name] for name in ALL_NAMES if name in DatasetCatalog.list()}
    metadata = {name: MetadataCatalog.get(name).as_dict() for name in ALL_NAMES}

    def clear() -> None:
        for name in ALL_NAMES:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)

    clear()
    yield
    clear()
    for name, function in before.items():
        DatasetCatalog.register(name, function)
        MetadataCatalog.get(name).set(**{key: value for key, value in metadata[name].items() if key != "name"})


def fill(root: Path, dataset: SemSegDataset, labels: np.ndarray) -> None:
    folder = "city" if dataset.recursive else ""
    images, masks = root / dataset.images / folder, root / dataset.labels / folder
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for stem in ("b", "a"):
        Image.new("RGB", labels.shape[::-1]).save(images / f"{stem}{dataset.image_suffix}")
    Image.fromarray(labels).save(masks / f"a{dataset.label_suffix}")


def test_places_of_panoptic_labels(empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_sem_seg")
    assert metadata.panoptic_root == str(tmp_path / "coco" / "panoptic_val2017")
    assert metadata.panoptic_json == str(tmp_path / "coco" / "annotations" / "panoptic_val2017.json")
    assert MetadataCatalog.get("ade20k_sem_seg_val").get("panoptic_json") is None


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_registers_and_reads_each(dataset, empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    labels = label_set(dataset.label_set)
    dtype = np.uint16 if dataset.label_suffix == ".tif" else np.uint8
    fill(tmp_path, dataset, np.full((3, 4), len(labels) - 1, dtype=dtype))
    stem = "city/a" if dataset.recursive else "a"
    for name in (dataset.name, *dataset.aliases):
        metadata = MetadataCatalog.get(name)
        assert (metadata.evaluator_type, metadata.ignore_label) == ("sem_seg", labels.ignore_label)
        assert tuple(metadata.stuff_classes) == labels.registry_names
        catalog.check_prepared(name)
        assert DatasetCatalog.get(name) == [
            {
                "file_name": str(tmp_path / dataset.images / f"{stem}{dataset.image_suffix}"),
                "sem_seg_file_name": str(tmp_path / dataset.labels / f"{stem}{dataset.label_suffix}"),
            }
        ]


PUBLISHED = {  # names and classes as ov-seg and SCAN register them
    "coco_2017_train_stuff_sem_seg": 171,
    "coco_2017_train_stuff_10k_sem_seg": 171,
    "ade20k_sem_seg_val": 150,
    "ade20k_full_sem_seg_val": 847,
    "pascalvoc20_sem_seg_val": 20,
    "pascal_context_59_sem_seg_val": 59,
    "pascal_context_459_sem_seg_val": 459,
}


def test_published_names_and_metadata(empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    assert {name: len(MetadataCatalog.get(name).stuff_classes) for name in PUBLISHED} == PUBLISHED
    assert MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes[8] == "window "  # verbatim, blank included
    coco_ids = MetadataCatalog.get("coco_2017_train_stuff_sem_seg").stuff_dataset_id_to_contiguous_id
    assert (coco_ids[1], coco_ids[90], coco_ids[182]) == (0, 79, 170)
    full = MetadataCatalog.get("ade20k_full_sem_seg_val")
    assert full.thing_classes == full.stuff_classes and full.ignore_label == 65535
    for name in PUBLISHED:
        assert MetadataCatalog.get(name).get("evaluation_set") is None


def test_seen_and_unseen_classes_of_coco_stuff(empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    whole = MetadataCatalog.get("coco_2017_test_stuff_sem_seg")
    base, novel = whole.evaluation_set["base"], whole.evaluation_set["novel"]
    assert (len(base), len(novel), sorted(base + novel)) == (156, 15, list(range(171)))
    assert [index for index, flag in enumerate(whole.trainable_flag) if not flag] == novel
    for part, members in (("base", base), ("novel", novel)):
        metadata = MetadataCatalog.get(f"coco_2017_train_stuff_{part}_sem_seg")
        assert metadata.stuff_classes == [whole.stuff_classes[index] for index in members]
        assert metadata.sem_seg_root.endswith(f"train2017_{part}")
        ids = metadata.stuff_dataset_id_to_contiguous_id
        assert whole.stuff_dataset_id_to_contiguous_id[max(ids, key=ids.get)] == members[-1]


def test_no_name_stands_for_two_data_sets():
    assert len(set(ALL_NAMES)) == len(ALL_NAMES)
    assert all(find_dataset(alias) is dataset for dataset in DATASETS for alias in dataset.aliases)
    assert find_dataset("nobody_knows_this") is None
    # the projects that number the classes by the alphabet are not given ov-seg's files, nor background at the other end
    assert find_dataset("context_59_test_sem_seg").label_set == "pascal_context_59_alphabetical"
    assert find_dataset("voc_2012_test_background_sem_seg").label_set == "pascal_voc_20b"
    assert find_dataset("openvocab_pascal21_sem_seg_val").label_set == "pascal_voc_21"


@pytest.mark.parametrize("name", ["ade20k_sem_seg_train", "ade20k_sem_seg_val", "cityscapes_fine_sem_seg_val"])
def test_detectron2s_own_data_sets_have_the_names_we_expect(name):
    metadata = MetadataCatalog.get(name)
    labels = label_set(find_dataset(name).label_set)
    assert tuple(metadata.stuff_classes) == labels.registry_names and metadata.ignore_label == labels.ignore_label


def test_detectron2s_own_cityscapes_is_left_to_it(empty_catalog, tmp_path, caplog):
    """Its metadata has other keys for folders, and its loader fails by assertions, so we look first."""
    dataset = find_dataset("cityscapes_fine_sem_seg_val")
    images, labels = f"{tmp_path / dataset.images}/", f"{tmp_path / dataset.labels}/"
    DatasetCatalog.register(dataset.name, lambda: load_cityscapes_semantic(images, labels))
    MetadataCatalog.get(dataset.name).set(image_dir=images, gt_dir=labels, evaluator_type="cityscapes_sem_seg")
    with caplog.at_level(logging.WARNING, logger="ovseg.data.catalog"):
        catalog.register_all(tmp_path)
    assert not caplog.records
    with pytest.raises(OvsegError, match=r"missing .*leftImg8bit/val.*prepare_cityscapes\.py"):
        catalog.check_prepared(dataset.name)

    fill(tmp_path, dataset, np.full((3, 4), 18, dtype=np.uint8))
    (tmp_path / dataset.images / "city" / "b_leftImg8bit.png").unlink()
    for name in ("a_gtFine_labelIds.png", "a_gtFine_instanceIds.png"):
        (tmp_path / dataset.labels / "city" / name).touch()
    (tmp_path / dataset.labels / "city" / "a_gtFine_polygons.json").write_text('{"imgHeight": 3, "imgWidth": 4}')
    catalog.check_prepared(dataset.name)
    (record,) = DatasetCatalog.get(dataset.name)
    assert record["sem_seg_file_name"] == str(tmp_path / dataset.labels / "city" / "a_gtFine_labelTrainIds.png")
    (tmp_path / dataset.labels / "city" / "a_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(OvsegError, match=r"holds no file that ends in _gtFine_labelTrainIds\.png"):
        catalog.check_prepared(dataset.name)


def test_a_second_registration_is_silent_and_a_stranger_keeps_the_name(empty_catalog, tmp_path, caplog):
    DatasetCatalog.register("pascalvoc20_sem_seg_val", lambda: [{"file_name": "theirs.jpg"}])
    MetadataCatalog.get("pascalvoc20_sem_seg_val").set(image_root="/their/images", sem_seg_root="/their/labels")
    with caplog.at_level(logging.WARNING, logger="ovseg.data.catalog"):
        catalog.register_all(tmp_path)
        assert ["pascalvoc20_sem_seg_val" in record.getMessage() for record in caplog.records] == [True]
    assert DatasetCatalog.get("pascalvoc20_sem_seg_val") == [{"file_name": "theirs.jpg"}]
    caplog.clear()
    DatasetCatalog.remove("pascalvoc20_sem_seg_val")
    MetadataCatalog.remove("pascalvoc20_sem_seg_val")
    catalog.register_all(tmp_path)
    catalog.register_all(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_unprepared_data_sets_say_what_is_missing_and_where_to_read(dataset, empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    with pytest.raises(OvsegError) as error:
        catalog.check_prepared(dataset.name)
    parts = (tmp_path / dataset.images, tmp_path / dataset.labels, dataset.section, catalog.README)
    for part in (*map(str, parts), dataset.script or ""):
        assert part in str(error.value)
    with pytest.raises(OvsegError, match="missing"):
        DatasetCatalog.get(dataset.name)

    (tmp_path / dataset.images).mkdir(parents=True)
    (tmp_path / dataset.images / f"a{dataset.image_suffix}").touch()
    with pytest.raises(OvsegError) as error:
        catalog.check_prepared(dataset.name)
    assert str(tmp_path / dataset.labels) in str(error.value)
    assert str(tmp_path / dataset.images) not in str(error.value)

    (tmp_path / dataset.labels).mkdir(parents=True)
    with pytest.raises(OvsegError, match=rf"no file that ends in {dataset.label_suffix}; expected are labels"):
        catalog.check_prepared(dataset.name)
    (tmp_path / dataset.labels / f"z{dataset.label_suffix}").touch()
    with pytest.raises(OvsegError, match="no image in"):
        DatasetCatalog.get(dataset.name)


def test_every_section_is_in_the_readme():
    headings = {line.removeprefix("## ") for line in README.read_text(encoding="utf-8").splitlines()}
    assert {dataset.section for dataset in DATASETS} <= headings


def test_every_name_is_in_the_readme():
    quoted = re.findall(r"`(\w+?)(?:\{([\w,]+)\})?(\w*)`", README.read_text(encoding="utf-8"))
    listed = {f"{start}{split}{end}" for start, splits, end in quoted for split in splits.split(",")}
    assert set(ALL_NAMES) <= listed


def test_unknown_name_gets_the_nearest():
    with pytest.raises(OvsegError, match=r"'ade20k_sem_se_val' is not registered: did you mean ade20k_sem_seg_val"):
        catalog.check_prepared("ade20k_sem_se_val")


def test_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert catalog.dataset_root() == tmp_path
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert catalog.dataset_root() == Path("datasets")
