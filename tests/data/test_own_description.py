from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from own_folder import CLASSES, save, save_image, save_json, write_masks, write_yaml

from ovseg.data.custom import description
from ovseg.data.custom.description import read_description
from ovseg.data.custom.source import open_source
from ovseg.errors import OvsegError

REPO = Path(__file__).parents[2]


def test_the_example_is_valid_and_tells_every_key(tmp_path):
    example = (REPO / "configs/data/my_dataset.yaml").read_text(encoding="utf-8")
    (tmp_path / "my_dataset").mkdir()
    own = read_description(write_yaml(tmp_path, example))
    assert own.classes.names == ("sky", "person", "dog")
    assert own.classes.synonyms[1] == ("person", "pedestrian", "rider")
    assert own.root == tmp_path / "my_dataset"
    told = (REPO / "docs/your_data.md").read_text(encoding="utf-8")
    for key in description._READERS:
        assert f"`{key}`" in told
        if key not in ("unseen", "vocabulary"):
            assert re.search(rf"^(# ?)?{key}:", example, flags=re.MULTILINE), key


def test_what_is_commented_out_in_the_example_is_valid_too(tmp_path):
    example = (REPO / "configs/data/my_dataset.yaml").read_text(encoding="utf-8")
    (tmp_path / "my_dataset").mkdir()
    save(tmp_path / "my_dataset/images/a.jpg", np.zeros((2, 2, 3), np.uint8))
    colors = np.array([[[70, 130, 180], [255, 0, 0]], [[139, 69, 19], [0, 0, 0]]], np.uint8)
    numbers = np.array([[7, 24], [31, 0]], np.uint8)
    for key, mask in (("ids", numbers), ("colors", colors), ("first_id", np.array([[1, 2], [3, 0]], np.uint8))):
        text = re.sub(rf"^# ({key}|seen|templates):", r"\1:", example, flags=re.MULTILINE)
        save(tmp_path / "my_dataset/masks/a_mask.png", mask)
        source = open_source(read_description(write_yaml(tmp_path, text)))
        assert source.read(source.pairing.pairs[0]).indices.tolist() == [[0, 1], [2, -1]]
        assert source.classes.evaluation_set == {"base": [0, 1], "novel": [2]}
        assert len(source.classes.vocabulary.templates) == 80


def test_classes_come_from_a_list_a_file_a_text_or_a_label_set(tmp_path):
    def classes(**keys):
        return read_description(write_yaml(tmp_path, {"images": "i", "masks": "m", **keys})).classes

    listed = classes(classes=CLASSES)
    (tmp_path / "classes.txt").write_text("sky\nperson: pedestrian\ndog\n")
    assert classes(classes="classes.txt") == classes(classes="sky; person, pedestrian; dog") == listed
    assert classes(label_set="cityscapes_19").names[:2] == ("road", "sidewalk")
    (tmp_path / "texts.txt").write_text("dog: puppy\nsky\nperson\n")
    reworded = classes(classes=CLASSES, vocabulary="texts.txt", templates=["a {}."])
    assert reworded.names == listed.names
    assert reworded.synonyms == (("sky",), ("person",), ("dog", "puppy"))
    assert reworded.templates == ("a {}.",)


BASIC = {"images": "images/*.jpg", "masks": "masks/*.png", "classes": CLASSES}
COCO = {"images": "images/*.jpg", "coco_instances": "coco.json"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"imags": "x"}, r"unknown key imags in .*mine\.yaml; did you mean images\?"),
        ({"colours": {}}, r"unknown key colours .* did you mean colors\?"),
        ({"root": "nowhere"}, r"root: there is no folder .*nowhere"),
        ({"root": 3}, r"root: is 3, expected a text"),
        ({"images": None}, r"mine\.yaml has no images"),
        ({"images": [1]}, r"images: is 1, expected a text"),
        ({"images": "images/a.jpg"}, r"images: 'images/a\.jpg' has no \*"),
        ({"images": "images/*.tif"}, r"images: no file matches 'images/\*\.tif' in .*; .*images holds a\.jpg"),
        (
            {"images": "pictures/*.jpg"},
            r"images: no file matches 'pictures/\*\.jpg' in .* holds .*images, masks, ",
        ),
        ({"masks": None}, r"mine\.yaml has no masks"),
        ({"masks": "masks/*.bmp"}, r"masks: no file matches"),
        ({"masks": "masks/*a.png"}, r"masks: no image has labels: 'images/\*\.jpg' finds the names 'a' and .* nearest"),
        ({"labelme": "*.json"}, r"mine\.yaml has labelme and masks: keep one"),
        ({"names": "val.txt"}, r"names: cannot read the list .*val\.txt"),
        ({"names": "empty.txt"}, r"names: the list .*empty\.txt is empty"),
        ({"names": "other.txt"}, r"masks: no image has labels: .* but the list in `names` has 'b'"),
        ({"classes": None}, r"mine\.yaml has no classes"),
        ({"classes": {0: "sky"}}, r"classes: is \{0: 'sky'\}, expected a list"),
        ({"classes": ["sky", False]}, r"classes: class 2 has the name False, which is no text: put it into quotes"),
        ({"classes": ["sky", ["dog", 3]]}, r"classes: class 2 has the name 3"),
        ({"classes": ["sky", "Ignore"]}, r"classes: class 2 is called 'Ignore'"),
        ({"classes": ["sky", "Sky"]}, r"'Sky' comes twice in classes of .*mine\.yaml"),
        ({"classes": "nothing.txt"}, r"classes: there is no vocabulary file .*nothing\.txt"),
        ({"label_set": "ade20k_150"}, r"mine\.yaml has classes and label_set"),
        ({"classes": None, "label_set": "ade_150"}, r"label_set: there is no label set 'ade_150': did you mean ade20k"),
        ({"vocabulary": "other.txt"}, r"vocabulary: .*other\.txt lacks the class 'dog'"),
        ({"templates": "imagnet"}, r"templates: .*imagnet"),
        ({"templates": ["a photo"]}, r"templates: .*a photo.* \{\}"),
        ({"ignore_label": -1}, r"ignore_label: is -1, expected a whole number"),
        ({"ignore_label": True}, r"ignore_label: is True"),
        ({"ignore_label": 0}, r"ignore_label: 0 is also the index of the class 'sky'.* first_id: 1"),
        ({"first_id": "one"}, r"first_id: is 'one'"),
        ({"first_id": 1, "ids": {1: "sky"}}, r"mine\.yaml has ids and first_id"),
        ({"masks": "/\n"}, "masks: / means every file"),
        ({"names": "/dev/zero"}, "is not a regular file"),
        ({"root": "x" * 300}, "root: there is no folder"),
        ({"masks": "x" * 300 + "/*.png"}, "masks: no file matches .x"),
        ({"colors": "sky"}, r"colors: is 'sky', expected lines of KEY: VALUE"),
        ({"ids": [1]}, r"ids: is \[1\], expected lines of KEY: VALUE"),
        ({"ids": "labels"}, r"ids: is 'labels'"),
        ({"ids": "label_set"}, r"ids: label_set stands for .* no label_set is named"),
        ({"ids": {"7": "sky"}}, r"ids: '7' is no value of a pixel"),
        ({"ids": {7: "skye"}}, r"ids: there is no class 'skye': did you mean 'sky'\?"),
        ({"ids": {7: 3}}, r"ids: there is no class 3: the classes are 0 to 2"),
        ({"ids": {7: 1.5}}, r"ids: 1\.5 is no class"),
        ({"colors": {"sky": [1, 2]}}, r"colors: 'sky' has the colour \[1, 2\]"),
        ({"colors": {"sky": "blu"}}, r"colors: 'sky' has the colour 'blu'"),
        ({"colors": {"sky": [0, 0, 256]}}, r"colors: 'sky' has the colour \[0, 0, 256\]"),
        ({"colors": {"sky": "blue", "dog": [0, 0, 255]}}, r"colors: 'dog' and 'sky' have the same colour #0000ff"),
        ({"colors": {"cloud": "blue"}}, r"colors: there is no class 'cloud': the classes are sky, person, dog"),
        ({"classes": [0, 1]}, r"classes: class 1 has the name 0, a number: write what CLIP is asked"),
        ({"classes": ["_background_", "__ignore__"]}, r"classes: class 2 is called '__ignore__', .*VALUE: ignore"),
        ({"unlisted": "skip"}, r"unlisted: is 'skip'; choose error or ignore"),
        ({"background": "sky"}, r"background: has no meaning with masks"),
        ({"seen": ["sky", "cat"]}, r"seen: there is no class 'cat'"),
        ({"seen": ["sky"], "unseen": ["sky"]}, r"unseen: 'sky' is also seen"),
        ({"seen": ["sky"], "unseen": ["dog"]}, r"seen: the class 'person' is neither"),
        ({"seen": ["sky", "person", "dog"]}, r"seen: names every class"),
    ],
)
def test_mistakes_are_told_with_file_and_key(tmp_path, keys, message):
    write_masks(tmp_path, {"a": np.zeros((2, 2), np.uint8)})
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.txt").write_text("b\n")
    content = {key: value for key, value in {**BASIC, **keys}.items() if value is not None}
    with pytest.raises(OvsegError, match=message) as error:
        open_source(read_description(write_yaml(tmp_path, content)))
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: [", r"mine\.yaml is not plain YAML"),
        ("images: !!python/object/apply:os.getcwd []", r"mine\.yaml is not plain YAML: could not determine"),
        ("ids: {0: a, 0: b}", r"mine\.yaml is not plain YAML: the key 0 comes twice"),
        ("- images", r"mine\.yaml must hold lines of KEY: VALUE"),
        ("", r"mine\.yaml has no images"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(tmp_path, text, message):
    with pytest.raises(OvsegError, match=message):
        read_description(write_yaml(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"coco_instances: cannot read .*coco\.json"),
        ([], r"coco_instances: .*coco\.json is no COCO file: it has no list of images"),
        ({"images": [], "annotations": []}, r"no list of categories"),
        ({"images": [{"id": 1}]}, r"an entry of images without file_name, \{'id': 1\}"),
        ({"images": [{"id": 1, "file_name": "z.jpg"}]}, r"images: none of the images of .* is there, such as z\.jpg"),
        ({"annotations": [3]}, r"an entry of annotations is unusable"),
        ({"categories": [{"id": 1}]}, r"an entry of categories without name"),
    ],
)
def test_broken_coco_files_are_told_with_the_key(tmp_path, content, message):
    save_image(tmp_path / "images/a.jpg")
    whole = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    if content is not None:
        complete = isinstance(content, list) or "no list of" in message
        save_json(tmp_path / "coco.json", content if complete else {**whole, **content})
    with pytest.raises(OvsegError, match=message):
        open_source(read_description(write_yaml(tmp_path, COCO)))
