from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovseg.data import catalog
from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set

README = Path(__file__).parents[2] / "datasets" / "README.md"


@pytest.fixture
def empty_catalog():
    """The names of our data sets free for registration; what was there comes back afterwards."""
    names = [dataset.name for dataset in catalog.DATASETS]
    before = {name: DatasetCatalog[name] for name in names if name in DatasetCatalog.list()}
    metadata = {name: MetadataCatalog.get(name).as_dict() for name in names}

    def clear() -> None:
        for name in names:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)

    clear()
    yield
    clear()
    for name, function in before.items():
        DatasetCatalog.register(name, function)
        MetadataCatalog.get(name).set(**{key: value for key, value in metadata[name].items() if key != "name"})


def fill(root: Path, dataset: catalog.SemSegDataset, labels: np.ndarray) -> None:
    for folder, stem in ((dataset.images, "b"), (dataset.images, "a")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", labels.shape[::-1]).save(root / folder / f"{stem}.jpg")
    (root / dataset.labels).mkdir(parents=True)
    Image.fromarray(labels).save(root / dataset.labels / f"a.{dataset.label_ext}")


@pytest.mark.parametrize("dataset", catalog.DATASETS, ids=lambda dataset: dataset.name)
def test_registers_and_reads_each(dataset, empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    metadata = MetadataCatalog.get(dataset.name)
    assert (metadata.evaluator_type, metadata.ignore_label) == ("sem_seg", dataset.ignore_label)
    assert tuple(metadata.stuff_classes) == label_set(dataset.label_set).registry_names
    dtype = np.uint16 if dataset.label_ext == "tif" else np.uint8
    fill(tmp_path, dataset, np.full((3, 4), len(metadata.stuff_classes) - 1, dtype=dtype))
    catalog.check_prepared(dataset.name)
    assert DatasetCatalog.get(dataset.name) == [
        {
            "file_name": str(tmp_path / dataset.images / "a.jpg"),
            "sem_seg_file_name": str(tmp_path / dataset.labels / f"a.{dataset.label_ext}"),
        }
    ]


def test_published_numbers_of_classes(empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    numbers = {dataset.name: len(MetadataCatalog.get(dataset.name).stuff_classes) for dataset in catalog.DATASETS}
    assert numbers == {
        "coco_2017_train_stuff_sem_seg": 171,
        "coco_2017_train_stuff_10k_sem_seg": 171,
        "ade20k_sem_seg_val": 150,
        "ade20k_full_sem_seg_val": 847,
        "pascalvoc20_sem_seg_val": 20,
        "pascal_context_59_sem_seg_val": 59,
        "pascal_context_459_sem_seg_val": 459,
    }
    assert MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes[8] == "window "  # verbatim, blank included
    coco_ids = MetadataCatalog.get("coco_2017_train_stuff_sem_seg").stuff_dataset_id_to_contiguous_id
    assert (coco_ids[1], coco_ids[90], coco_ids[182]) == (0, 79, 170)


def test_detectron2s_own_ade20k_has_the_names_we_expect():
    assert tuple(MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes) == label_set("ade20k_150").registry_names


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


@pytest.mark.parametrize("dataset", catalog.DATASETS, ids=lambda dataset: dataset.name)
def test_unprepared_data_sets_say_what_is_missing_and_where_to_read(dataset, empty_catalog, tmp_path):
    catalog.register_all(tmp_path)
    with pytest.raises(OvsegError) as error:
        catalog.check_prepared(dataset.name)
    parts = (tmp_path / dataset.images, tmp_path / dataset.labels, dataset.section, catalog.README)
    for part in (*map(str, parts), dataset.script or ""):
        assert part in str(error.value)
    with pytest.raises(OvsegError, match="missing"):
        DatasetCatalog.get(dataset.name)
    assert f"## {dataset.section}\n" in README.read_text(encoding="utf-8")

    (tmp_path / dataset.images).mkdir(parents=True)
    (tmp_path / dataset.images / "a.jpg").touch()
    with pytest.raises(OvsegError) as error:
        catalog.check_prepared(dataset.name)
    assert str(tmp_path / dataset.labels) in str(error.value)
    assert str(tmp_path / dataset.images) not in str(error.value)

    (tmp_path / dataset.labels).mkdir(parents=True)
    with pytest.raises(OvsegError, match=rf"holds no \.{dataset.label_ext} file; expected are labels"):
        catalog.check_prepared(dataset.name)
    (tmp_path / dataset.labels / f"z.{dataset.label_ext}").touch()
    with pytest.raises(OvsegError, match="no image in"):
        DatasetCatalog.get(dataset.name)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(OvsegError, match=r"'ade20k_sem_se_val' is not registered: did you mean ade20k_sem_seg_val"):
        catalog.check_prepared("ade20k_sem_se_val")


def test_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert catalog.dataset_root() == tmp_path
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert catalog.dataset_root() == Path("datasets")
