"""Raw labels of every format against arrays made by hand."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from own_folder import labels_of, save, save_image, save_json, source_of, write_masks
from PIL import Image
from pycocotools import mask as run_lengths

from ovseg.data.custom.values import IGNORED, UNLISTED, look_up
from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set

SKY, PERSON, DOG = 0, 1, 2


def one_mask(folder, mask, suffix=".png"):
    write_masks(folder, {"a": mask}, suffix)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.uint8, np.uint16, np.int32]).flatmap(
        lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 6), st.integers(1, 6)))
    ),
    st.dictionaries(st.integers(0, 70_000), st.integers(-1, 40), min_size=1, max_size=8),
)
def test_looking_up_is_what_a_dictionary_does(raw, table):
    raw.flat[0] = min(table) % np.iinfo(raw.dtype).max  # so that often something is found
    labels = look_up(raw, table)
    expected = np.array([[table.get(value, UNLISTED) for value in row] for row in raw.tolist()])
    np.testing.assert_array_equal(labels.indices, expected)
    assert labels.indices.dtype == np.int32
    foreign = raw[expected == UNLISTED].tolist()
    assert labels.unlisted == {str(value): foreign.count(value) for value in foreign}
    ignoring = look_up(raw, table, IGNORED)
    np.testing.assert_array_equal(ignoring.indices, np.maximum(expected, IGNORED))
    assert not ignoring.unlisted


def test_masks_of_class_indices(tmp_path):
    one_mask(tmp_path, np.array([[0, 1, 2], [255, 0, 1]], np.uint8))
    assert labels_of(tmp_path).tolist() == [[SKY, PERSON, DOG], [IGNORED, SKY, PERSON]]
    assert source_of(tmp_path).usable_as_is(source_of(tmp_path).pairing.pairs[0])
    one_mask(tmp_path, np.array([[0, 1, 2], [9, 0, 1]], np.uint8))
    source = source_of(tmp_path, ignore_label=200)
    labels = source.read(source.pairing.pairs[0])
    assert labels.unlisted == {"value 9": 1}
    assert labels.indices[1, 0] == UNLISTED


@pytest.mark.parametrize(
    ("keys", "raw"),
    [
        ({"first_id": 1}, [[1, 2], [3, 0]]),
        ({"first_id": 10}, [[10, 11], [12, 4]]),
        ({"ids": {7: "sky", 24: "pedestrian", 31: 2, 0: "ignore"}}, [[7, 24], [31, 0]]),
        ({"ids": {7: "SKY", 24: "person", 31: "dog"}}, [[7, 24], [31, 255]]),
        ({"ids": {7: "sky", 24: "person", 31: "dog"}, "unlisted": "ignore"}, [[7, 24], [31, 99]]),
        ({"unlisted": "ignore"}, [[0, 1], [2, 99]]),
        ({"ignore_label": 3}, [[0, 1], [2, 3]]),
    ],
)
def test_masks_of_other_numbers(tmp_path, keys, raw):
    for dtype, suffix in ((np.uint8, ".png"), (np.uint16, ".png"), (np.uint16, ".tif"), (np.int32, ".tif")):
        one_mask(tmp_path / suffix / dtype.__name__, np.array(raw, dtype), suffix)
        found = labels_of(tmp_path / suffix / dtype.__name__, masks=f"masks/*{suffix}", **keys)
        assert found.tolist() == [[SKY, PERSON], [DOG, IGNORED]]


def test_numbers_of_a_label_set(tmp_path):
    numbers = label_set("cityscapes_19").dataset_ids
    one_mask(tmp_path, np.array([[numbers[0], numbers[18]], [numbers[5], 255]], np.uint8))
    found = labels_of(tmp_path, classes=None, label_set="cityscapes_19", ids="label_set")
    assert found.tolist() == [[0, 18], [5, IGNORED]]


def test_palettes_bilevel_and_grey_pictures_of_several_channels(tmp_path):
    values = np.array([[0, 1], [2, 0]], np.uint8)
    expected = values.tolist()
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    one_mask(tmp_path, values)
    palette.save(tmp_path / "masks/a.png")
    assert labels_of(tmp_path).tolist() == expected
    colors = {"sky": "red", "person": "lime", "dog": "blue"}
    assert labels_of(tmp_path, colors=colors).tolist() == expected  # the palette's colours
    for channels in (2, 3, 4):
        grey = np.repeat(values[:, :, None], channels, axis=2)
        grey[:, :, -1] = grey[:, :, -1] if channels == 3 else 255  # LA and RGBA
        save(tmp_path / "masks/a.png", grey)
        source = source_of(tmp_path)
        assert source.read(source.pairing.pairs[0]).indices.tolist() == expected
        assert not source.usable_as_is(source.pairing.pairs[0])
    Image.fromarray(values > 0).save(tmp_path / "masks/a.png")
    assert labels_of(tmp_path).tolist() == [[SKY, PERSON], [PERSON, SKY]]


def test_masks_of_whole_float_numbers_and_of_transparency_alone(tmp_path):
    values = np.array([[0, 1], [1, 0]])
    one_mask(tmp_path, values.astype(np.float32), ".tif")
    assert labels_of(tmp_path, masks="masks/*.tif").tolist() == [[SKY, PERSON], [PERSON, SKY]]
    one_mask(tmp_path, (values / 2).astype(np.float32), ".tif")
    with pytest.raises(OvsegError, match="numbers of type float32"):
        labels_of(tmp_path, masks="masks/*.tif")
    for channels in (2, 4):
        one_mask(tmp_path, np.dstack([values * 0] * (channels - 1) + [values * 255]).astype(np.uint8))
        with pytest.raises(OvsegError, match=r"a\.png has its labels in the transparency"):
            labels_of(tmp_path)


def test_coloured_masks(tmp_path):
    mask = np.array([[[70, 130, 180], [220, 20, 60]], [[255, 0, 0], [0, 0, 0]]], np.uint8)
    one_mask(tmp_path, mask)
    colors = {"sky": [70, 130, 180], "person": ["#dc143c", [255, 0, 0]], "ignore": "black"}
    assert labels_of(tmp_path, colors=colors).tolist() == [[SKY, PERSON], [PERSON, IGNORED]]
    source = source_of(tmp_path, colors={"sky": [70, 130, 180]})
    assert source.read(source.pairing.pairs[0]).unlisted == {
        "colour #000000": 1,
        "colour #dc143c": 1,
        "colour #ff0000": 1,
    }
    with pytest.raises(OvsegError, match=r"a\.png is a colour image: list the class of each colour"):
        labels_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_masks_that_cannot_be_read_are_named(tmp_path, content):
    one_mask(tmp_path, np.random.default_rng(0).integers(0, 3, (40, 40)).astype(np.uint8))
    path = tmp_path / "masks/a.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(OvsegError, match=r"mask .*a\.png (is empty|cannot be read)"):
        labels_of(tmp_path)


# --- COCO ------------------------------------------------------------------------------------------------------------

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "sky"}]


def coco(folder, annotations, size=(4, 6)):
    save_image(folder / "images/a.jpg", size)
    image = {"id": 5, "file_name": "a.jpg", "height": size[0], "width": size[1]}
    save_json(folder / "coco.json", {"images": [image], "annotations": annotations, "categories": CATEGORIES})


def panoptic(folder, segments, ids):
    """Segment ids as R + 256 G + 65536 B."""
    ids = np.array(ids)
    save(folder / "coco/a.png", np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8))
    infos = [{"id": number, "category_id": category} for number, category in segments.items()]
    coco(folder, [{"image_id": 5, "file_name": "a.png", "segments_info": infos}], ids.shape)


def test_panoptic_segments(tmp_path):
    panoptic(tmp_path, {3: 90, 300: 1, 70_000: 18, 7: 1}, [[3, 300, 0], [70_000, 7, 7]])
    keys = {"coco_panoptic": "coco.json"}
    assert labels_of(tmp_path, **keys).tolist() == [[SKY, PERSON, IGNORED], [DOG, PERSON, PERSON]]
    assert labels_of(tmp_path, **keys, background="sky")[0, 2] == SKY
    assert labels_of(tmp_path, **keys, ids={18: "ignore"})[1, 0] == IGNORED
    by_id = source_of(tmp_path, **keys, classes=None)  # the categories themselves, ascending by id
    assert by_id.classes.vocabulary.names == ("person", "dog", "sky")
    assert by_id.read(by_id.pairing.pairs[0]).indices.tolist() == [[2, 0, -1], [1, 0, 0]]
    (tmp_path / "coco").rename(tmp_path / "elsewhere")
    assert labels_of(tmp_path, **keys, masks="elsewhere")[0, 0] == SKY


def test_panoptic_segments_without_a_class_are_counted(tmp_path):
    panoptic(tmp_path, {3: 90, 4: 91}, [[3, 4, 4], [9, 9, 9]])
    source = source_of(tmp_path, coco_panoptic="coco.json", classes=["dog"])
    assert source.read(source.pairing.pairs[0]).unlisted == {
        "category 'sky'": 1,
        "category 91": 2,
        "segment 9, which the JSON file does not have": 3,
    }
    ignored = labels_of(tmp_path, coco_panoptic="coco.json", classes=["dog"], unlisted="ignore")
    assert (ignored == IGNORED).all()


@settings(max_examples=25, deadline=None)
@given(ids=arrays.arrays(np.int32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 2**24 - 1)))
def test_any_panoptic_segments(tmp_path_factory, ids):
    segments = {number: (90, 1, 18)[place % 3] for place, number in enumerate(np.unique(ids).tolist()) if number}
    folder = tmp_path_factory.mktemp("panoptic")
    panoptic(folder, segments, ids)
    of_category = {90: SKY, 1: PERSON, 18: DOG}
    expected = [[of_category[segments[n]] if n else IGNORED for n in row] for row in ids.tolist()]
    assert labels_of(folder, coco_panoptic="coco.json").tolist() == expected


def test_instances_as_polygons_and_run_lengths(tmp_path):
    dog = np.zeros((4, 6), np.uint8, order="F")
    dog[1:3, 1:3] = 1
    compressed = run_lengths.encode(dog)
    segmentations = [
        (90, [[0, 0, 6, 0, 6, 2, 0, 2]]),  # the upper half
        (18, {"size": [4, 6], "counts": compressed["counts"].decode()}),
        (1, {"size": [4, 6], "counts": [20, 4]}),  # the last column
    ]
    for order in (segmentations, segmentations[::-1]):  # the smaller is on top, whatever the order
        coco(
            tmp_path, [{"id": i, "image_id": 5, "category_id": c, "segmentation": s} for i, (c, s) in enumerate(order)]
        )
        _ = IGNORED
        assert labels_of(tmp_path, coco_instances="coco.json").tolist() == [
            [SKY, SKY, SKY, SKY, SKY, PERSON],
            [SKY, DOG, DOG, SKY, SKY, PERSON],
            [_, DOG, DOG, _, _, PERSON],
            [_, _, _, _, _, PERSON],
        ]
    assert labels_of(tmp_path, coco_instances="coco.json", background="dog")[3, 0] == DOG


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_instances(tmp_path_factory, data):
    masks = data.draw(arrays.arrays(np.bool_, st.tuples(st.integers(0, 4), st.just(5), st.just(7))))
    folder = tmp_path_factory.mktemp("instances")
    annotations, expected = [], np.full((5, 7), IGNORED)
    categories = [(90, SKY), (1, PERSON), (18, DOG)]
    for place, mask in enumerate(masks):
        rle = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle["counts"] = rle["counts"].decode()
        annotations.append({"id": place, "image_id": 5, "category_id": categories[place % 3][0], "segmentation": rle})
    for place in sorted(range(len(masks)), key=lambda p: -masks[p].sum()):
        expected[masks[place]] = categories[place % 3][1]
    coco(folder, annotations, (5, 7))
    np.testing.assert_array_equal(labels_of(folder, coco_instances="coco.json"), expected)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3]],
        [[1, 2, 3, 4, 5]],
        [[1, 1, 5, 1, 5, "3"]],
        [[1, 1, 5, 1, 5, None]],
        [[1, 1, 1e9, 1, 5, 3]],
        [[1, 1, -1e9, 1, 5, 3]],
        [[1, 1, float("nan"), 1, 5, 3]],
        [[1, 1, float("inf"), 1, 5, 3]],
        [[[1, 1], [5, 1, 3], [5, 3]]],
        {"size": [9, 9], "counts": [81]},
        {"size": [6, 4], "counts": [20, 4]},
        {"size": [4, 6], "counts": [20, 5]},
        {"size": [4, 6], "counts": [-1, 25]},
        {"size": [4, 6], "counts": [20.5, 3.5]},
        {"size": [4, 6], "counts": "zzzz"},
        {"size": [4, 6], "counts": "\x00"},
        {"size": [4, 6], "counts": "PPPPPPPPPPPPPPPPPPPP0"},
        {"size": [4, 6], "counts": 24},
        {"size": 24, "counts": [20, 4]},
        {"counts": [20, 4]},
        "x",
        7,
    ],
)
def test_unusable_segmentations_are_named(tmp_path, segmentation):
    coco(tmp_path, [{"id": 77, "image_id": 5, "category_id": 1, "segmentation": segmentation}])
    with pytest.raises(OvsegError, match=r"coco\.json: annotation 77 of .*a\.jpg has no usable segmentation"):
        labels_of(tmp_path, coco_instances="coco.json")


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        {},
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 1, 2]],
        {"size": [4, 6], "counts": []},
        [[50, 50, 60, 50, 60, 60]],
    ],
)
def test_annotations_without_area_are_left_out_and_named(tmp_path, segmentation):
    usable = {"id": 78, "image_id": 5, "category_id": 1, "segmentation": [[0, 0, 6, 0, 6, 4, 0, 4]]}
    coco(tmp_path, [{"id": 77, "image_id": 5, "category_id": 18, "segmentation": segmentation}, usable])
    source = source_of(tmp_path, coco_instances="coco.json")
    labels = source.read(source.pairing.pairs[0])
    assert (labels.indices == PERSON).all() and not labels.unlisted
    assert [name.split(",")[0] for name in labels.left_out] == ["annotation 77 (category 'dog')"]


def test_polygons_without_area_are_left_out_one_by_one(tmp_path):
    polygons = [[0, 0, 6, 0, 6, 4, 0, 4], [1, 1, 2, 2]]
    coco(tmp_path, [{"id": 77, "image_id": 5, "category_id": 1, "segmentation": polygons}])
    source = source_of(tmp_path, coco_instances="coco.json")
    labels = source.read(source.pairing.pairs[0])
    assert (labels.indices == PERSON).all()
    assert labels.left_out == {"1 polygons of annotation 77, which have no area": 0}


def test_images_of_coco_are_found_by_the_end_of_their_path(tmp_path):
    for name in ("day/a.jpg", "night/a.jpg", "night/b.jpg"):
        save_image(tmp_path / "images" / name)
    entries = [("night/a.jpg", 1), ("b.jpg", 2), ("gone.jpg", 3)]
    images = [{"id": i, "file_name": name, "height": 4, "width": 6} for name, i in entries]
    save_json(tmp_path / "coco.json", {"images": images, "annotations": [], "categories": CATEGORIES})
    pairing = source_of(tmp_path, images="images", coco_instances="coco.json").pairing
    assert [pair.name for pair in pairing.pairs] == ["night/a", "night/b"]
    assert pairing.images_alone == (str(tmp_path / "images/day/a.jpg"),)
    assert [text.split()[0] for text in pairing.labels_alone] == ["gone.jpg"]
    images[0]["file_name"] = "a.jpg"
    save_json(tmp_path / "coco.json", {"images": images, "annotations": [], "categories": CATEGORIES})
    with pytest.raises(OvsegError, match=r"images: .*day/a\.jpg and .*night/a\.jpg may both be 'a\.jpg'"):
        source_of(tmp_path, images="images", coco_instances="coco.json")


# --- labelme ---------------------------------------------------------------------------------------------------------


def labelme(folder, shapes, size=(5, 6), **more):
    save_image(folder / "images/a.jpg", size)
    content = {"imageHeight": size[0], "imageWidth": size[1], "imagePath": "a.jpg", **more}
    content["shapes"] = [{"label": lab, "shape_type": kind, "points": pts, **rest} for lab, kind, pts, rest in shapes]
    save_json(folder / "images/a.json", content)


LABELME = {"labelme": "images/*.json"}


def test_labelme_shapes(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(png, "png")
    mask = {"mask": base64.b64encode(png.getvalue()).decode()}
    labelme(
        tmp_path,
        [
            ("sky", "rectangle", [[5, 1], [0, 0]], {}),  # any two corners, both included
            ("Pedestrian", "polygon", [[0, 0], [2, 0], [2, 4], [0, 4]], {}),
            ("dog", "mask", [[4, 3], [5, 4]], mask),
            ("dog", "circle", [[4, 1], [4, 2]], {}),
        ],
    )
    _ = IGNORED
    expected = [
        [PERSON, PERSON, PERSON, SKY, DOG, SKY],
        [PERSON, PERSON, PERSON, DOG, DOG, DOG],
        [PERSON, PERSON, PERSON, _, DOG, _],
        [PERSON, PERSON, PERSON, _, DOG, _],
        [PERSON, PERSON, PERSON, _, DOG, DOG],
    ]
    assert labels_of(tmp_path, **LABELME).tolist() == expected
    assert labels_of(tmp_path, **LABELME, background="sky")[4, 3] == SKY
    labelme(tmp_path, [("sky", None, [[0, 0], [5, 0], [5, 4], [0, 4]], {})], imageHeight=None)  # old files
    assert (labels_of(tmp_path, **LABELME) == SKY).all()


def test_labels_of_labelme_without_a_class(tmp_path):
    shapes = [("car", "rectangle", [[0, 0], [1, 1]], {}), ("wire", "line", [[0, 0], [3, 3]], {})]
    labelme(tmp_path, shapes)
    source = source_of(tmp_path, **LABELME)
    labels = source.read(source.pairing.pairs[0])
    assert labels.unlisted == {"label 'car'": 4}
    assert labels.left_out == {"shape 2 ('wire'), a line, which has no area": 0}
    assert (labels.indices[:2, :2] == UNLISTED).all()
    assert (labels_of(tmp_path, **LABELME, unlisted="ignore") == IGNORED).all()
    labelme(tmp_path, shapes[:1])
    assert labels_of(tmp_path, **LABELME, ids={"Car": "dog"})[0, 0] == DOG


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "sky", "points": [[0, 0], [1, 1], [2, 2]], "shape_type": "circle"}, "circle has 2 points"),
        ({"label": "sky", "points": [[0, 0], [1e9, 0], [1, 1]], "shape_type": "polygon"}, "far outside"),
        ({"label": "sky", "points": [[0, 0], [float("nan"), 0], [1, 1]]}, "far outside"),
        ({"label": "sky", "points": [[0, 0], [1e9, 0]], "shape_type": "circle"}, "far outside"),
        ({"label": "sky", "points": [[0, 0], ["3", 0], [1, 1]]}, "not pairs of numbers"),
        ({"label": "sky", "points": [[0, 0, 0], [3, 0, 0], [1, 1, 0]]}, "not pairs of numbers"),
        ({"label": "sky", "points": [[0, 0], [1, 1]], "shape_type": "mask"}, "has no 'mask'"),
        ({"label": "sky", "points": [[0, 0], [1, 1]], "shape_type": "spline"}, "'spline' is not known"),
        ({"points": [[0, 0], [1, 1]]}, "has no 'label'"),
        ({"label": "sky", "points": "x"}, "not pairs of numbers"),
        (7, "7 is not an object"),
    ],
)
def test_unusable_shapes_are_named(tmp_path, shape, message):
    save_image(tmp_path / "images/a.jpg")
    save_json(tmp_path / "images/a.json", {"shapes": [shape], "imageHeight": 4, "imageWidth": 6})
    with pytest.raises(OvsegError, match=rf"a\.json: shape 1 is unusable .*{message}"):
        labels_of(tmp_path, **LABELME)


SQUARE = [[1, 1], [4, 1], [4, 3], [1, 3]]


@pytest.mark.parametrize("kind", ["polygon", "oriented_rectangle", "quadrilateral", "rotation", "rectangle"])
def test_four_corners_of_whatever_name(tmp_path, kind):
    labelme(tmp_path, [("sky", kind, SQUARE, {})])
    expected = np.full((5, 6), IGNORED)
    expected[1:4, 1:5] = SKY
    np.testing.assert_array_equal(labels_of(tmp_path, **LABELME), expected)


@pytest.mark.parametrize(
    "points", [[[0, 0], [40, 20]], [[20, 10], [40, 10], [20, 20]], [[0, 0], [40, 0], [40, 20], [0, 20]]]
)
def test_ellipses(tmp_path, points):
    labelme(tmp_path, [("sky", "ellipse", points, {})], (21, 41))
    y, x = np.mgrid[:21, :41]
    inside = ((x - 20) / 20) ** 2 + ((y - 10) / 10) ** 2 <= 1
    found = labels_of(tmp_path, **LABELME) == SKY
    assert (found != inside).mean() < 0.08  # the outline


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", [[0, 0], [1, 1]]),
        ("polygon", [[2, 2], [2, 2], [2, 2]]),
        ("polygon", [[90, 90], [95, 90], [95, 95]]),
        ("rectangle", [[1, 1]]),
        ("rectangle", [[1, 1], [1, 1]]),
        ("circle", [[0, 0]]),
        ("oriented_rectangle", [[0, 0], [1, 1]]),
        ("point", [[0, 0]]),
        ("points", [[0, 0], [3, 3], [4, 4]]),
        ("linestrip", [[0, 0], [3, 3], [4, 4]]),
    ],
)
def test_clicks_by_accident_are_left_out_and_named(tmp_path, kind, points):
    labelme(tmp_path, [("sky", kind, points, {}), ("dog", "polygon", SQUARE, {})])
    source = source_of(tmp_path, **LABELME)
    labels = source.read(source.pairing.pairs[0])
    assert (labels.indices == DOG).sum() == 12 and not labels.unlisted
    assert [name.split(",")[0] for name in labels.left_out] == ["shape 1 ('sky')"]


@pytest.mark.parametrize(("height", "width"), [(-5, 6), (10**9, 10**9), ("x", 6), ([5], 6), (5.5, 6)])
@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_sizes_that_no_image_has_are_refused(tmp_path, kind, height, width):
    if kind == "labelme":
        labelme(tmp_path, [("sky", "polygon", SQUARE, {})], imageHeight=height, imageWidth=width)
        keys = LABELME
    else:
        coco(tmp_path, [], (5, 6))
        image = {"id": 5, "file_name": "a.jpg", "height": height, "width": width}
        save_json(tmp_path / "coco.json", {"images": [image], "annotations": [], "categories": CATEGORIES})
        keys = {"coco_instances": "coco.json"}
    with pytest.raises(OvsegError, match=r"a\.jpg"):
        labels_of(tmp_path, **keys)


def test_labels_that_are_numbers(tmp_path):
    labelme(tmp_path, [("1", "polygon", SQUARE, {}), (2, "rectangle", [[0, 0], [0, 1]], {})])
    found = labels_of(tmp_path, **LABELME, ids={1: "dog", 2: "sky"})
    assert (found[1, 1], found[0, 0]) == (DOG, SKY)
    assert labels_of(tmp_path, **LABELME, ids={"1": "sky", 1: "dog", 2: "sky"})[1, 1] == SKY  # the quoted one
    with pytest.raises(OvsegError, match=r"ids: True is no label: put it into quotes"):
        labels_of(tmp_path, **LABELME, ids={True: "sky"})


def test_what_is_no_labelme_file_is_named(tmp_path):
    save_image(tmp_path / "images/a.jpg")
    for text, message in (("[1]", "has no list of shapes"), ("{", "cannot be read")):
        (tmp_path / "images/a.json").write_text(text)
        with pytest.raises(OvsegError, match=rf"a\.json .*{message}"):
            labels_of(tmp_path, **LABELME)


def test_more_than_255_classes_ignore_65535(tmp_path):
    one_mask(tmp_path, np.array([[0, 299], [255, 65535]], np.uint16), ".tif")
    found = labels_of(tmp_path, masks="masks/*.tif", classes=[f"thing {i}" for i in range(300)])
    assert found.tolist() == [[0, 299], [255, IGNORED]]
