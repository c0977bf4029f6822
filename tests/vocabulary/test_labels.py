from __future__ import annotations

import hashlib

import pytest

from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set, label_set_names

# SHA-256 of the registered names joined by newlines, from the published class lists
REGISTERED = {  # name: (data set, classes, ignored pixel value, digest)
    "ade20k_150": ("ade20k_sem_seg_val", 150, 255, "e09fb83957a3a604e8fc67408625d3fbdb6e7923c40663032abcf55658d0c95d"),
    "ade20k_847": (
        "ade20k_full_sem_seg_val",
        847,
        65535,
        "ee311c5f3b780a16a58f40726927f6c41149860a5fca6c1116ea1dca129efd8b",
    ),
    "coco_stuff_171": (
        "coco_2017_train_stuff_sem_seg",
        171,
        255,
        "8ea44449837dceb30923012b201fe0152adc612160d0d040c9cfcd77e95f6801",
    ),
    "pascal_context_59": (
        "pascal_context_59_sem_seg_val",
        59,
        255,
        "d19f875de36b2b482ebafb2171ef1fc85ae3791f5dd845f690a39dc724beea9d",
    ),
    "pascal_context_459": (
        "pascal_context_459_sem_seg_val",
        459,
        65535,
        "c9fe8ff7083d2572021691666a700755d8f4e1c634585ba9919a3f3a2c834538",
    ),
    "pascal_voc_20": (
        "pascalvoc20_sem_seg_val",
        20,
        255,
        "7d877f185c807bc51b4cfb4f4202fc0b4e1c6724b782ba245fe36f8d254f0ad7",
    ),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_names_are_verbatim(name):
    dataset, count, ignore_label, digest = REGISTERED[name]
    labels = label_set(name)
    assert dataset in labels.registered_as
    assert len(labels.registry_names) == count and labels.ignore_label == ignore_label
    assert hashlib.sha256("\n".join(labels.registry_names).encode()).hexdigest() == digest


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


def test_a_mistyped_label_set_gets_the_nearest_names():
    with pytest.raises(OvsegError, match="ade20k_150"):
        label_set("ADE20K-150")
    with pytest.raises(OvsegError, match="there are ade20k_150, "):
        label_set("???")
