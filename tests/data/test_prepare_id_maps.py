"""Raw values -> classes: properties of the maps of every data set, and of looking values up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ovseg.data.prepare import IdMap, class_table, id_maps, look_up
from ovseg.data.prepare.sources import BadFile
from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set

# label set, number of raw values, options: as in the scripts
MAPS = {
    "ade20k_150": (151, {}),
    "ade20k_847": (3689, {}),
    "cityscapes_19": (34, {}),
    "coco_object_80": (182, {"offset": -1, "void": 255}),
    "coco_stuff_171": (182, {"offset": -1, "void": 255}),
    "coco_stuff_172": (182, {"offset": -1, "void": 255}),
    "coco_stuff_156_seen": (182, {"offset": -1, "void": 255}),
    "coco_stuff_15_unseen": (182, {"offset": -1, "void": 255}),
    "pascal_context_59": (460, {}),
    "pascal_context_59_alphabetical": (460, {}),
    "pascal_context_60": (460, {}),
    "pascal_context_459": (460, {}),
    "pascal_voc_20": (21, {"void": 255}),
    "pascal_voc_20b": (21, {"void": 255}),
    "pascal_voc_21": (21, {"void": 255}),
}
sizes = st.tuples(st.integers(0, 9), st.integers(0, 9))


def map_of(name: str) -> IdMap:
    number, options = MAPS[name]
    return class_table(name, number, **options)


@pytest.mark.parametrize("name", MAPS)
def test_every_class_comes_from_its_raw_value_alone(name):
    id_map, classes = map_of(name), label_set(name)
    offset = MAPS[name][1].get("offset", 0)
    others = [index for index, dataset_id in enumerate(classes.dataset_ids) if dataset_id is None]
    for index, dataset_id in enumerate(classes.dataset_ids):
        if dataset_id is not None:
            assert np.flatnonzero(id_map.table == index).tolist() == [dataset_id + offset]
    rest = set(range(len(id_map.table))) - {d + offset for d in classes.dataset_ids if d is not None}
    assert {int(id_map.table[value]) for value in rest} <= {others[0] if others else classes.ignore_label}
    assert id_map.table.dtype == (np.uint16 if classes.ignore_label > 255 else np.uint8)


@pytest.mark.parametrize("name", MAPS)
@given(data=st.data())
def test_looking_up_is_indexing(name, data):
    id_map = map_of(name)
    values = np.flatnonzero(id_map.known)
    dtype = data.draw(st.sampled_from(["u1", "u2", "i4", "i8"] if values.max() < 256 else ["u2", "i4", "i8"]))
    raw = data.draw(arrays(dtype, sizes, elements=st.sampled_from(values.tolist())))
    labels = look_up(id_map, raw, Path("a.png"))
    assert labels.dtype == id_map.table.dtype and labels.shape == raw.shape
    assert labels.tolist() == [[int(id_map.table[value]) for value in row] for row in raw.tolist()]
    counted = labels[labels != id_map.ignore_label]
    assert counted.max(initial=0) < len(label_set(name))


@given(
    known=arrays(bool, st.integers(1, 300)),
    raw=arrays(st.sampled_from(["u1", "u2", "i2", "i4"]), st.tuples(st.integers(1, 6), st.integers(1, 6))),
)
def test_values_that_must_not_occur_are_found(known, raw):
    id_map = IdMap(np.zeros(len(known), np.uint8), known, 255)
    fine = all(0 <= value < len(known) and known[value] for value in raw.ravel().tolist())
    if fine:
        assert not look_up(id_map, raw, Path("a.png")).any()
    elif known.any():
        strange = next(v for v in sorted(set(raw.ravel().tolist())) if not (0 <= v < len(known) and known[v]))
        with pytest.raises(BadFile, match=rf"a\.png holds the value {strange}\b"):
            look_up(id_map, raw, Path("a.png"))


@given(arrays(np.uint8, sizes, elements=st.integers(0, 150)))
def test_ade20k_is_subtracting_one_with_wrap_around(raw):
    np.testing.assert_array_equal(look_up(map_of("ade20k_150"), raw, Path("a.png")), raw - np.uint8(1))


@given(arrays(np.uint16, sizes, elements=st.integers(0, 459)))
def test_pascal_context_agrees_with_itself(raw):
    """What the 59 classes say is what the 459 classes say, in both orders; 60 is 59 moved by one."""
    of_459, of_59, alphabetical, of_60 = (
        look_up(map_of(f"pascal_context_{variant}"), raw, Path("a.mat"))
        for variant in ("459", "59", "59_alphabetical", "60")
    )
    np.testing.assert_array_equal(of_459, raw - np.uint16(1))
    for labels, name in ((of_59, "pascal_context_59"), (alphabetical, "pascal_context_59_alphabetical")):
        counted = labels != 255
        ids = np.array(label_set(name).dataset_ids)
        np.testing.assert_array_equal(ids[labels[counted]], of_459[counted].astype(int) + 1)
    np.testing.assert_array_equal(of_60, alphabetical + np.uint8(1))


@given(arrays(np.uint8, sizes, elements=st.sampled_from([*range(182), 255])))
def test_coco_stuff_seen_and_unseen_share_the_pixels(raw):
    whole, seen, unseen, behind_background = (
        look_up(map_of(f"coco_stuff_{part}"), raw, Path("a.png")) for part in ("171", "156_seen", "15_unseen", "172")
    )
    np.testing.assert_array_equal(behind_background, whole + np.uint8(1), "background is what is ignored")
    np.testing.assert_array_equal((seen != 255) | (unseen != 255), whole != 255)
    assert not ((seen != 255) & (unseen != 255)).any()


@pytest.mark.parametrize("raw", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), np.zeros(4, np.uint8)])
def test_what_is_no_label_map(raw):
    with pytest.raises(BadFile, match=r"a\.png has shape .* expected one channel of integers"):
        look_up(map_of("ade20k_150"), raw, Path("a.png"))


def test_recipes_differ():
    assert len({map_of(name).recipe for name in MAPS}) == len(MAPS)


def test_a_label_set_with_several_classes_without_number(monkeypatch):
    strange = replace(label_set("pascal_voc_20"), dataset_ids=(None,) * 20)
    monkeypatch.setattr(id_maps, "label_set", lambda name: strange)
    with pytest.raises(OvsegError, match="has no dataset_id for its classes"):
        class_table("pascal_voc_20", 21)
