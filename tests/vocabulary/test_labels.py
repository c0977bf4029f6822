from __future__ import annotations

import hashlib

import pytest

from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set, label_set_names

# SHA-256 of the registered names joined by newlines, from the published class lists
REGISTERED = {  # name: (tag, classes, ignored pixel value, digest)
    "ade20k_150": ("A-150", 150, 255, "e09fb83957a3a604e8fc67408625d3fbdb6e7923c40663032abcf55658d0c95d"),
    "ade20k_847": ("A-847", 847, 65535, "ee311c5f3b780a16a58f40726927f6c41149860a5fca6c1116ea1dca129efd8b"),
    "coco_stuff_171": ("COCO-Stuff-171", 171, 255, "8ea44449837dceb30923012b201fe0152adc612160d0d040c9cfcd77e95f6801"),
    "pascal_context_59": ("PC-59", 59, 255, "d19f875de36b2b482ebafb2171ef1fc85ae3791f5dd845f690a39dc724beea9d"),
    "pascal_context_459": ("PC-459", 459, 65535, "c9fe8ff7083d2572021691666a700755d8f4e1c634585ba9919a3f3a2c834538"),
    "coco_stuff_172": ("COCO-Stuff-172", 172, 255, "c62337afd0673e4704f7c3e7198d7a3a618b82856be30c6fe22c0866780f39a3"),
    "coco_object_80": ("COCO-Object", 81, 255, "1f17b53017e442257cad2025ab981ddeb28d048af00dcac8ae810bc25a6a9a77"),
    "ovsegmentor_ade20k_150": (
        "A-150-OVSegmentor",
        150,
        255,
        "2133f0a0e71146d00a14482f872bc5888f66d706f90f1b1333a7eb5025989af9",
    ),
    "ovsegmentor_context_60": (
        "PC-60-OVSegmentor",
        60,
        255,
        "be95f2a33d51dae392e9098d6fdc76322504ffd3457e73cec0342dc2d778c9b0",
    ),
    "ovsegmentor_voc_21": (
        "PAS-21-OVSegmentor",
        21,
        255,
        "97741c26926f4fe63900ee1b5b4e593654d781741ec2e84d1afb822569a4a8f7",
    ),
    "pascal_voc_20": ("PAS-20", 20, 255, "7d877f185c807bc51b4cfb4f4202fc0b4e1c6724b782ba245fe36f8d254f0ad7"),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_names_are_verbatim(name):
    tag, count, ignore_label, digest = REGISTERED[name]
    labels = label_set(name)
    assert (labels.tag, len(labels), labels.ignore_label) == (tag, count, ignore_label)
    assert hashlib.sha256("\n".join(labels.registry_names).encode()).hexdigest() == digest


def test_every_published_class_list_is_here():
    assert {name: len(label_set(name)) for name in label_set_names()} == {
        "ade20k_150": 150,
        "ade20k_847": 847,
        "cityscapes_19": 19,
        "coco_object_80": 81,  # background, too
        "coco_panoptic_133": 133,
        "coco_stuff_15_unseen": 15,
        "coco_stuff_156_seen": 156,
        "coco_stuff_171": 171,
        "coco_stuff_172": 172,
        "mapillary_vistas_65": 65,
        "ovsegmentor_ade20k_150": 150,
        "ovsegmentor_context_60": 60,
        "ovsegmentor_voc_21": 21,
        "pascal_context_59": 59,
        "pascal_context_59_alphabetical": 59,
        "pascal_context_60": 60,
        "pascal_context_459": 459,
        "pascal_voc_20": 20,
        "pascal_voc_20b": 21,
        "pascal_voc_21": 21,
    }
    assert label_set("mapillary_vistas_65").ignore_label == 65


def test_the_words_of_ovsegmentor_are_other_names_of_the_same_classes():
    for ours, other in (("voc_21", "pascal_voc_21"), ("context_60", "pascal_context_60"), ("ade20k_150", "ade20k_150")):
        labels, same = label_set(f"ovsegmentor_{ours}"), label_set(other)
        assert labels.dataset_ids == same.dataset_ids and labels.background_id == same.background_id
    assert label_set("ovsegmentor_ade20k_150").registry_names[7] == "bed ", "as published"
    assert label_set("ovsegmentor_voc_21").names[11] == label_set("ovsegmentor_context_60").names[50] == "table"
    assert label_set("ovsegmentor_voc_21").synonyms[0] == ("background",)


def test_splits_cover_the_classes():
    coco, ade = label_set("coco_stuff_171").splits, label_set("ade20k_847").splits
    assert sorted(coco["base"] + coco["novel"]) == list(range(171))
    assert sorted(ade["frequent"] + ade["common"] + ade["rare"]) == list(range(847))
    assert [len(ade[name]) for name in ("frequent", "common", "rare")] == [212, 360, 275]
    unseen = (
        "cow giraffe suitcase frisbee skateboard carrot scissors cardboard clouds grass playingfield river road tree "
        "wall-concrete"
    )
    assert label_set("coco_stuff_15_unseen").names == tuple(unseen.split())
    assert tuple(label_set("coco_stuff_171").names[index] for index in coco["novel"]) == tuple(unseen.split())
    # seen classes are numbered anew, so that a table of raw values can be made from the ids alone
    assert label_set("coco_stuff_156_seen").dataset_ids[19] == 22  # elephant; cow, 21, is unseen


def test_the_two_orders_of_pascal_context_hold_the_same_classes():
    published, alphabetical = label_set("pascal_context_59"), label_set("pascal_context_59_alphabetical")
    assert sorted(published.dataset_ids) == list(alphabetical.dataset_ids)
    assert published.names[10] == alphabetical.names[49] == "table"
    assert (published.names.index("sky"), alphabetical.names.index("sky")) == (49, 46)
    assert label_set("pascal_context_60").names == ("background", *alphabetical.names)
    assert label_set("pascal_context_60").background_id == 0


def test_background_of_pascal_voc():
    ignored, last, first = (label_set(f"pascal_voc_{name}") for name in ("20", "20b", "21"))
    assert (ignored.background, last.background, first.background) == ("ignored", "leftover words", "synonyms")
    assert (ignored.background_id, last.background_id, first.background_id) == (None, 20, 0)
    assert last.names == (*ignored.names, "background") and first.names == ("background", *ignored.names)
    assert (last.dataset_ids[20], first.dataset_ids[0], ignored.dataset_ids[0]) == (0, 0, 1)
    # the 39 words of the specification of OpenSeg, 7.4
    leftover = (
        "bag bed bench book building cabinet ceiling cloth computer cup door fence floor flower food grass ground "
        "keyboard light mountain mouse curtain platform sign plate road rock shelves sidewalk sky snow bedclothes "
        "track tree truck wall water window wood"
    )
    assert last.background_words == first.background_words == tuple(leftover.split())
    assert first.synonyms[0] == last.synonyms[20]
    assert {"background", "drinking glass", "clouds"} <= set(first.synonyms[0])
    assert not {"clothes", "plate"} & set(first.synonyms[0])  # these were given to person and dining table


def test_coco_object_is_the_things_behind_background():
    labels = label_set("coco_object_80")
    assert labels.names[0] == "background" and labels.background == "word" and labels.dataset_ids[0] is None
    assert labels.names[1:] == label_set("coco_panoptic_133").names[:80] == label_set("coco_stuff_171").names[:80]
    assert (labels.dataset_ids[1], labels.dataset_ids[80]) == (1, 90)


def test_blanks_and_commas_survive_in_the_registered_names_only():
    labels = label_set("ade20k_150")
    assert "window " in labels.registry_names and "window" in labels.names
    assert "road, route" in labels.registry_names
    assert labels.synonyms[labels.names.index("road, route")][:2] == ("road", "route")


@pytest.mark.parametrize("name", label_set_names())
def test_every_label_set_is_consistent(name):
    labels = label_set(name)
    assert labels.name == name and labels.title and labels.source
    count = len(labels.names)
    assert len(labels.registry_names) == len(labels.synonyms) == len(labels.dataset_ids) == count
    assert len(set(labels.names)) == count
    assert all(registered.strip() == own for registered, own in zip(labels.registry_names, labels.names, strict=True))
    assert all(texts and all(text.strip() for text in texts) for texts in labels.synonyms)
    known = [number for number in labels.dataset_ids if number is not None]
    assert len(set(known)) == len(known) >= count - 1
    assert labels.ignore_label >= count
    assert labels.background_id is None or labels.names[labels.background_id] == "background"


def test_a_mistyped_label_set_gets_the_nearest_names():
    with pytest.raises(OvsegError, match="ade20k_150"):
        label_set("ADE20K-150")
    with pytest.raises(OvsegError, match="choose one of ade20k_150, "):
        label_set("???")
    with pytest.raises(OvsegError, match=r"did you mean .*pascal_voc_20b"):
        label_set("pascal_voc_20c")
