"""COCO files as people have them: merged, exported on other systems, edited by hand."""

from __future__ import annotations

import numpy as np
import pytest
from own_folder import labels_of, save, save_image, save_json, source_of

from ovseg.data.custom.geometry import Ids
from ovseg.errors import OvsegError

CATEGORIES = [{"id": 1, "name": "crack"}, {"id": 2, "name": "road"}]
KEYS = {"coco_instances": "coco.json", "classes": ["crack", "road"], "background": "road"}


def box(left, top, right, bottom, **more):
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon], **more}


def write(folder, images, annotations, categories=CATEGORIES, size=(4, 6)):
    """``coco.json``; an image is its id and file_name, or a whole entry."""
    entries = [
        one if isinstance(one, dict) else {"id": one[0], "file_name": one[1], "height": size[0], "width": size[1]}
        for one in images
    ]
    for name in ("a.jpg", "b.jpg"):
        save_image(folder / "images" / name, size)
    save_json(folder / "coco.json", {"images": entries, "annotations": annotations, "categories": categories})


def cracks(folder, **keys):
    """Pixels of the class crack, by image."""
    source = source_of(folder, **{**KEYS, **keys})
    return {pair.name: int((source.read(pair).indices == 0).sum()) for pair in source.pairing.pairs}


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "images/a.jpg",
        "images\\a.jpg",
        "..\\..\\a.jpg",
        "../images/a.jpg",
        "C:\\x\\a.jpg",
        "/x/a.jpg",
        " a.jpg",
        "A.JPG",
        "%61.jpg",
    ],
)
def test_paths_of_other_systems(tmp_path, name):
    write(tmp_path, [(1, name)], [box(0, 0, 3, 2)])
    assert cracks(tmp_path) == {"a": 6}


def test_folders_decide_between_images_of_one_name(tmp_path):
    for folder in ("day", "night"):
        save_image(tmp_path / "images" / folder / "c.jpg")
    write(tmp_path, [(1, "x\\night\\c.jpg"), (2, "x\\day\\c.jpg")], [box(0, 0, 3, 2)])
    assert cracks(tmp_path, images="images") == {"day/c": 0, "night/c": 6}
    (tmp_path / "images/day/c.jpg").unlink()
    source = source_of(tmp_path, **KEYS, images="images")  # the objects of one image never go to another
    assert [pair.name for pair in source.pairing.pairs] == ["night/c"]
    assert source.pairing.labels_alone[0].startswith("x\\day\\c.jpg of")
    write(tmp_path, [(1, "x/c.jpg"), (2, "y/c.jpg")], [box(0, 0, 3, 2)])
    with pytest.raises(OvsegError, match=r"night/c\.jpg may be 'x/c\.jpg' and 'y/c\.jpg' of .*: which one"):
        source_of(tmp_path, **KEYS, images="images")


@pytest.mark.parametrize(
    ("image_id", "of_annotation"), [(1, "1"), ("1", 1), (1, 1.0), (1, " 1 "), ("a", "a"), ("1.0", 1)]
)
def test_ids_that_are_written_in_another_way(tmp_path, image_id, of_annotation):
    write(tmp_path, [(image_id, "a.jpg")], [box(0, 0, 3, 2, image_id=of_annotation)])
    assert cracks(tmp_path) == {"a": 6}


def test_ids_that_two_images_are_written_with():
    ids = Ids([1, "1", 2])
    assert (ids.find(1), ids.find("1"), ids.find(" 1"), ids.find("2"), ids.find(3)) == (1, "1", None, 2, None)
    assert ids.find([1]) is None and ids.find(None) is None


def test_annotations_of_no_image_are_named(tmp_path):
    lost = [box(0, 0, 3, 2, id=k, image_id=9) for k in range(7)] + [box(0, 0, 1, 1, id=70, image_id="x")]
    write(tmp_path, [(1, "a.jpg")], [box(0, 0, 3, 2), *lost])
    first, second = source_of(tmp_path, **KEYS).pairing.homeless
    assert first.startswith("7 annotations of") and first.endswith(
        "image_id 9, which is no image's: 0, 1, 2, 3, 4, ..."
    )
    assert second.endswith("image_id 'x', which is no image's: 70")
    write(tmp_path, [(1, "a.jpg")], lost)
    with pytest.raises(
        OvsegError, match=r"coco_instances: no annotation of .*coco\.json belongs to an image: 9 is no id"
    ):
        source_of(tmp_path, **KEYS)


def test_a_list_of_names_may_have_suffixes(tmp_path):
    write(tmp_path, [(1, "a.jpg"), (2, "b.jpg")], [box(0, 0, 3, 2)])
    (tmp_path / "val.txt").write_text("a.jpg\nnone.jpg\n")
    pairing = source_of(tmp_path, **KEYS, names="val.txt").pairing
    assert ([pair.name for pair in pairing.pairs], pairing.absent) == (["a"], ("none",))


def test_two_images_of_one_id_are_refused(tmp_path):
    write(tmp_path, [(1, "a.jpg"), (1, "b.jpg")], [box(0, 0, 3, 2)])
    with pytest.raises(OvsegError, match=r"two images of the id 1, 'a\.jpg' and 'b\.jpg'"):
        source_of(tmp_path, **KEYS)


def test_an_image_that_is_listed_twice_is_one(tmp_path):
    annotations = [box(0, 0, 3, 2), box(3, 2, 6, 4, image_id=2)]
    for second in ((2, "a.jpg"), (2, "images\\a.jpg"), (2, "./a.jpg")):
        write(tmp_path, [(1, "a.jpg"), second], annotations)
        assert cracks(tmp_path) == {"a": 12}
    write(tmp_path, [(1, "a.jpg"), (1, "a.jpg")], [box(0, 0, 3, 2)])
    assert cracks(tmp_path) == {"a": 6}


@pytest.mark.parametrize(
    "size", [{}, {"height": None, "width": None}, {"height": 0, "width": 0}, {"height": "4", "width": "6"}]
)
def test_sizes_that_are_missing_are_read_from_the_image(tmp_path, size):
    write(tmp_path, [{"id": 1, "file_name": "a.jpg", **size}], [box(0, 0, 3, 2)])
    assert labels_of(tmp_path, **KEYS).shape == (4, 6)
    assert cracks(tmp_path) == {"a": 6}


def test_categories_with_blanks_texts_for_ids_and_one_name_twice(tmp_path):
    categories = [{"id": "1", "name": " Crack\u200b "}, {"id": 2, "name": "road"}, {"id": 3, "name": "crack"}]
    write(tmp_path, [(1, "a.jpg")], [box(0, 0, 3, 2), box(3, 2, 6, 4, category_id="3")], categories)
    assert cracks(tmp_path) == {"a": 12}
    source = source_of(tmp_path, coco_instances="coco.json", classes=None)
    assert source.classes.vocabulary.names == ("Crack", "road")
    assert (source.read(source.pairing.pairs[0]).indices == 0).sum() == 12
    categories[2] = {"id": 1, "name": "sky"}
    write(tmp_path, [(1, "a.jpg")], [], categories)
    with pytest.raises(OvsegError, match="two categories of the id 1, 'Crack' and 'sky'"):
        source_of(tmp_path, coco_instances="coco.json", classes=None)


def test_ids_of_categories_may_be_in_quotes(tmp_path):
    write(tmp_path, [(1, "a.jpg")], [box(0, 0, 3, 2, category_id=7)], [{"id": 7, "name": "1"}, {"id": 1, "name": "x"}])
    assert cracks(tmp_path, ids={"7": "crack", "x": "road"}) == {"a": 6}
    assert cracks(tmp_path, ids={"1": "crack", "7": "road"}) == {"a": 6}  # a name goes before an id in quotes


def test_names_that_no_class_can_have(tmp_path):
    write(tmp_path, [(1, "a.jpg")], [box(0, 0, 3, 2)], [{"id": 1, "name": "0"}, {"id": 2, "name": "1"}])
    with pytest.raises(OvsegError, match=r"coco\.json has numbers for names"):
        source_of(tmp_path, coco_instances="coco.json", classes=None)
    write(tmp_path, [(1, "a.jpg")], [box(0, 0, 3, 2)], [{"id": 1, "name": "crack"}, {"id": 2, "name": "__Ignore__"}])
    with pytest.raises(OvsegError, match="class 2 is called '__Ignore__', which stands for ignored pixels"):
        source_of(tmp_path, coco_instances="coco.json", classes=None)


def test_fractions_of_the_size_are_left_out_and_named(tmp_path):
    write(tmp_path, [(1, "a.jpg")], [box(0.1, 0.1, 0.9, 0.8), box(0, 0, 1, 1, id=2)])
    source = source_of(tmp_path, **KEYS)
    labels = source.read(source.pairing.pairs[0])
    assert [name for name in labels.left_out if "not fractions" in name and name.startswith("annotation 1 (")]
    assert (labels.indices == 0).sum() == 1


@pytest.mark.parametrize("category", [7, "7", None, [1], {}])
def test_categories_that_are_not_there_are_counted(tmp_path, category):
    write(tmp_path, [(1, "a.jpg")], [box(0, 0, 3, 2, category_id=category)])
    source = source_of(tmp_path, **KEYS)
    assert source.read(source.pairing.pairs[0]).unlisted == {f"category {category!r}": 6}
    source = source_of(tmp_path, **KEYS, unlisted="ignore")
    labels = source.read(source.pairing.pairs[0])
    assert labels.left_out == {f"category {category!r}": 6} and (labels.indices == -1).sum() == 6


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("images", {"id": None, "file_name": "a.jpg"}, "an entry of images without id"),
        ("images", {"id": [1], "file_name": "a.jpg"}, "an entry of images is unusable"),
        ("annotations", {"image_id": None}, "an entry of annotations without image_id"),
        ("annotations", {"image_id": {}}, "an entry of annotations is unusable"),
        ("categories", {"id": 1, "name": None}, "an entry of categories without name"),
    ],
)
def test_entries_that_are_none_are_refused(tmp_path, part, entry, message):
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": CATEGORIES}
    save_image(tmp_path / "images/a.jpg")
    save_json(tmp_path / "coco.json", {**content, part: [*content[part], entry]})
    with pytest.raises(OvsegError, match=message):
        source_of(tmp_path, **KEYS)


def panoptic(folder, annotation, segments, name="a.png"):
    ids = np.zeros((4, 6, 3), np.uint8)
    ids[:2, :3, 0], ids[2:, :, 0] = 7, 8
    save(folder / "coco" / name, ids)
    write(folder, [(1, "a.jpg")], [{"image_id": "1", "segments_info": segments, **annotation}])
    return {**KEYS, "coco_instances": None, "coco_panoptic": "coco.json"}


def test_panoptic_files_are_matched_in_the_same_way(tmp_path):
    segments = [{"id": "7", "category_id": "1"}, {"id": 8.0, "category_id": 2}]
    for name in ("a.png", "coco\\a.png", "..\\..\\coco\\a.png", None):
        keys = panoptic(tmp_path, {"file_name": name}, segments)
        assert (labels_of(tmp_path, **keys) == 0).sum() == 6


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "no list of segments_info"),
        ([3], "no list of segments_info"),
        ([{"category_id": 1}], "id of a segment is 'None', not a whole number"),
        ([{"id": 7, "category_id": 1}, {"id": 7, "category_id": 2}], "segment 7 has two categories"),
    ],
)
def test_panoptic_segments_that_are_none_are_refused(tmp_path, segments, message):
    with pytest.raises(OvsegError, match=message):
        labels_of(tmp_path, **panoptic(tmp_path, {"file_name": "a.png"}, segments))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b.png"])
def test_label_files_of_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(OvsegError, match=r"cannot be read|no mask"):
        labels_of(tmp_path, **panoptic(tmp_path, {"file_name": name}, [{"id": 1, "category_id": 1}]))
