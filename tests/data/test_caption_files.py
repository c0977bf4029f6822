from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ovseg.data.caption_files import check_bad, read_captions
from ovseg.errors import OvsegError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    for name in ("000000000009.jpg", "b.png", "sub/c.jpg", "ADE_train_00000007.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(folder / name)
    return folder


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def names(found):
    return [(item.path.name, item.image_id, item.captions) for item in found.images]


def test_coco(tmp_path, root):
    content = {
        "images": [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 5, "file_name": "gone.jpg"}],
        "annotations": [
            {"image_id": 9, "id": 1, "caption": " A dog.\n"},
            {"image_id": 5, "id": 2, "caption": "A cat."},
            {"image_id": 9, "id": 3, "caption": "Two dogs."},
            {"image_id": 9, "id": 4, "caption": "  "},
            {"image_id": 77, "id": 5, "caption": "x"},
            {"image_id": 9, "id": 6, "caption": None},
            "nonsense",
        ],
    }
    found = read_captions(write(tmp_path / "captions.json", json.dumps(content)), root)
    assert names(found) == [("000000000009.jpg", "9", ("A dog.", "Two dogs."))]
    assert found.entries == 7 and len(found.bad) == 5
    assert any("gone.jpg" in line for line in found.bad) and any("empty" in line for line in found.bad)


def test_narratives(tmp_path, root):
    lines = [
        json.dumps({"dataset_id": "mscoco_train2017", "image_id": "9", "caption": "Blocks ."}),
        '{"dataset_id": "mscoco_train2017", "image_id"',
        json.dumps({"dataset_id": "ADE20k_train", "image_id": "7", "caption": "A road."}),
        json.dumps({"dataset_id": "openimages", "image_id": "c", "caption": "A car."}),
        json.dumps({"dataset_id": "openimages", "image_id": "zz", "caption": "A car."}),
        "[]",
        "",
    ]
    found = read_captions(write(tmp_path / "x.jsonl", "\n".join(lines)), root)
    assert [item.path.name for item in found.images] == ["000000000009.jpg", "ADE_train_00000007.jpg", "c.jpg"]
    assert found.entries == 6 and len(found.bad) == 3
    assert "line 2" in found.bad[0] and "'zz'" in found.bad[1]


def test_tables(tmp_path, root):
    comma = write(
        tmp_path / "a.csv", '\ufefffilepath,caption\nb.png,"a dog, a ""cat"""\nsub/c.jpg,x\nb.png,more\nb.png\n'
    )
    found = read_captions(comma, root)
    assert names(found) == [("b.png", "b", ('a dog, a "cat"', "more")), ("c.jpg", "c", ("x",))]
    assert found.entries == 4 and "line 5" in found.bad[0]
    tab = write(tmp_path / "a.tsv", 'title\tfilepath\n"dog\tb.png\n\nsub\tsub/c.jpg\n')
    assert names(read_captions(tab, root))[0] == ("b.png", "b", ('"dog',))  # no quoting
    assert len(read_captions(write(tmp_path / "t.csv", tab.read_bytes()), root).images) == 2  # tabs in spite of .csv
    own = write(tmp_path / "o.csv", "what;which\na dog;b.png\n")
    assert len(read_captions(own, root, "which", "what", ";").images) == 1


def test_bytes_that_are_no_text(tmp_path, root):
    found = read_captions(write(tmp_path / "a.csv", b"file,caption\nb.png,caf\xe9\nb.png,ok\nb\x00.png,nul\n"), root)
    assert names(found) == [("b.png", "b", ("ok",))]
    assert found.entries == 3 and len(found.bad) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "no captions file"),
        ("a.xml", "<a/>", r"from \.json, \.jsonl, \.csv and \.tsv"),
        ("a.json", "{", "not COCO's captions JSON"),
        ("a.json", '{"images": []}', r"not COCO's captions JSON, .* \(it has no 'annotations'\)"),
        ("a.json", "[" * 100_000, r"not COCO's captions JSON, .* \(it is nested too deeply\)"),
        ("a.csv", "", "its first line holds nothing"),
        ("a.tsv", "a dog\thttp://example.com/0.jpg\n", "--image-column"),
        ("a.csv", "file,caption\nnowhere.jpg,a dog\n", "no caption of .* can be used.*nowhere.jpg.*--image-root"),
    ],
)
def test_useless_files(tmp_path, root, name, content, message):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(OvsegError, match=message):
        read_captions(tmp_path / name, root)


def test_one_percent(tmp_path):
    check_bad(1, 100, "captions", tmp_path, allow=False)
    check_bad(50, 100, "captions", tmp_path, allow=True)
    with pytest.raises(OvsegError, match=r"2 of 100 captions \(2\.0%\).*--allow-bad"):
        check_bad(2, 100, "captions", tmp_path, allow=False)
