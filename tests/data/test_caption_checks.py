"""datasets/check_captions.py on the miniature caption files, and on what is wrong with others."""

from __future__ import annotations

import shutil

import pytest

from ovseg.data.caption_checks import check_captions
from ovseg.errors import OvsegError
from tests.data.prepared import MINIATURES
from tests.scripts import load_script

CONCEPTUAL = MINIATURES / "conceptual_captions"
NARRATIVES = MINIATURES / "localized_narratives/annotations"


def run(*arguments) -> int:
    return load_script("datasets/check_captions.py").main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("file", "root", "kind", "captions", "images"),
    [
        (MINIATURES / "coco/coco/annotations/captions_train2017.json", None, "COCO Captions", 15, 3),
        (NARRATIVES / "coco_val_captions.jsonl", MINIATURES / "coco/coco", "Localized Narratives", 1, 1),
        (NARRATIVES / "coco_val_localized_narratives.jsonl", MINIATURES / "coco/coco", "Localized Narratives", 1, 1),
        (
            NARRATIVES / "ade20k_train_captions.jsonl",
            MINIATURES / "ade20k_150/ADEChallengeData2016/images",
            "Localized Narratives",
            1,
            1,
        ),
        (CONCEPTUAL / "cc3m/Train_GCC-training.tsv", None, "Conceptual Captions (CC3M)", 6, None),
        (CONCEPTUAL / "cc12m/cc12m.tsv", None, "Conceptual 12M", 6, None),
        (CONCEPTUAL / "cc3m/Train_GCC-training_output.csv", CONCEPTUAL, "table", 6, 6),
        (CONCEPTUAL / "ovseg_pairs/coco_proposal_1cap.csv", None, "table", 3, 3),
        (CONCEPTUAL / "cc12m/cc12m.csv", CONCEPTUAL / "cc12m/images", "table", 6, 6),
        (
            CONCEPTUAL / "cc12m/cc12m_filtered_subset.csv",
            CONCEPTUAL / "cc12m/images",
            "OVSegmentor table with entity",
            5,
            5,
        ),
        (
            CONCEPTUAL / "cc12m/cc12m_filtered_subset_pair.csv",
            CONCEPTUAL / "cc12m/images",
            "OVSegmentor table with entity, pairindex, pairentity",
            5,
            5,
        ),
    ],
)
def test_every_format(file, root, kind, captions, images):
    check = check_captions(file, root)
    assert (check.kind, check.captions, check.images, check.faults) == (kind, captions, images, [])


def test_images_that_are_not_there(tmp_path, capsys):
    shutil.copy(NARRATIVES / "coco_train_captions.jsonl", tmp_path)
    path = tmp_path / "coco_train_captions.jsonl"
    with pytest.raises(OvsegError, match="no image files for image_id '9'"):
        run(path)
    assert run(path, "--no-images") == 0
    assert f"{path}: Localized Narratives, 2 captions of 2 images: right" in capsys.readouterr().out


def test_status_and_faults_of_the_command_line(tmp_path, capsys):
    released = MINIATURES / "coco/coco/annotations/captions_val2017.json"
    assert run(released) == 1
    assert "10 captions of 2 images: right, but the released file has 25,014 captions" in capsys.readouterr().out
    assert run(released, "--partial") == 0
    path = tmp_path / "x.tsv"
    lines = ["a dog\thttp://example.com/0.jpg", "no address\tx", "one column", "\thttp://example.com/1.jpg"]
    path.write_bytes("\n".join(lines).encode() + b"\ncaf\xe9\thttp://example.com/2.jpg\n")
    assert run(path, "--show", "3") == 1
    printed = capsys.readouterr().out
    for fault in (
        "5 captions: WRONG, 4 faults",
        "line 2 of x.tsv: column 2 holds no web address",
        "line 3 of x.tsv: 1 columns instead of 2",
        "line 4 of x.tsv: the caption is empty",
        "... and 1 more",
    ):
        assert fault in printed
    assert run(path) == 1
    assert "line 5 of x.tsv: not UTF-8 text" in capsys.readouterr().out


def test_partners_that_cannot_be(tmp_path):
    path = tmp_path / "pair.csv"
    ones, dogs = str([1] * 10), str(["dog"] * 10)
    rows = [
        ("a dog", "dog,cat", ones, dogs, ""),
        ("a dog", "dog", str([0] * 10), dogs, ""),
        ("a dog", "", ones, dogs, "no entity"),
        ("a dog", "dog", str([9] * 10), dogs, "pairindex 9 is no row: there are 8"),
        ("a dog", "dog", ones, str(["cat"] * 10), "'cat' is not an entity of both this row and row 1"),
        ("a dog", "dog", "[1]", "['dog']", "must be lists of 10 numbers and words"),
        ("a dog", "dog", "__import__('os')", dogs, "pairindex or pairentity is no list"),
        ("a dog", "dog", dogs, ones, "must be lists of 10 numbers and words"),
    ]
    text = "image_id,caption,entity,pairindex,pairentity\n"
    text += "".join(f'x.jpg,{caption},"{entity}","{index}","{word}"\n' for caption, entity, index, word, _ in rows)
    path.write_text(text)
    faults = check_captions(path, need_images=False).faults
    for line, (*_, wanted) in enumerate(rows, start=2):
        found = [fault for fault in faults if fault.startswith(f"line {line} of pair.csv")]
        assert bool(found) == bool(wanted)
        assert not wanted or any(wanted in fault for fault in found)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OvsegError, match="there is no captions file"):
        run(tmp_path / "x.json")
