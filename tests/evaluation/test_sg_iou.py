from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from ovseg.config import get_cfg
from ovseg.data.protocol import Protocol, protocol_of
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.evaluation.sg_iou import credited_pixels, sg_scores
from ovseg.evaluation.sg_table import build_table, read_table, table_from_text
from ovseg.vocabulary import Vocabulary

FIXTURE = Path(__file__).parents[1] / "data" / "sg_iou"
NAMES = ("cat", "animal", "stone wall", "wall")


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """Label maps, matrix and scores of the published evaluator with a made-up table (SCAN's parity fixture)."""
    with np.load(FIXTURE / "sgiou.npz", allow_pickle=False) as file:
        return dict(file)


def protocol(names=NAMES, words=None, to_class=None, dataset="sg_test") -> Protocol:
    vocabulary = Vocabulary.from_words(words or names)
    return Protocol(dataset, dataset, "names", vocabulary, tuple(names), to_class, 255, "none")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_equals_the_recorded_reference(recorded):
    names = tuple(recorded["class_names"].tolist())
    ignore = int(recorded["ignore_label"])
    maps = zip(recorded["pred"], recorded["label"], strict=True)
    conf = sum(confusion_matrix(pred, label, len(names), ignore) for pred, label in maps)
    np.testing.assert_array_equal(conf, recorded["conf_matrix"])
    table = read_table(FIXTURE / "sgiou_tables.json", protocol(names, dataset="tiny"))
    assert table.fathers == {1: (0,), 3: (2,), 4: (2, 3), 6: (5,), 5: (6,)}
    subsets = {"seen": [0, 1, 2, 3]}
    plain, forgiving = scores_from_confusion(conf, names, subsets), sg_scores(conf, names, table.fathers, subsets)
    recorded_names = recorded["metric_names"].tolist()
    np.testing.assert_allclose([plain[n] for n in recorded_names], recorded["vanilla_values"], rtol=0, atol=1e-9)
    ours = [forgiving[f"SG-{n}"] for n in recorded_names]
    np.testing.assert_allclose(ours, recorded["sgiou_values"], rtol=0, atol=1e-9)
    assert next(iter(forgiving)) == "SG-mIoU"


@st.composite
def cases(draw):
    k = draw(st.integers(2, 5))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    pred = draw(st.lists(st.integers(0, k - 1), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    true = draw(st.lists(st.sampled_from([*range(k), 255]), min_size=len(pred), max_size=len(pred)))
    fathers = {}
    for child in draw(st.sets(st.integers(0, k - 1))):
        others = [index for index in range(k) if index != child]
        fathers[child] = tuple(draw(st.lists(st.sampled_from(others), unique=True)))
    return k, np.array(pred).reshape(shape), np.array(true).reshape(shape), fathers


def pixel_by_pixel(k, pred, true, fathers) -> tuple[list[float], list[float], float]:
    """IoU and accuracy of each class and the mean IoU by their definition, from the pixels themselves."""
    pixels = [(p, t) for p, t in zip(pred.ravel(), true.ravel(), strict=True) if t != 255]
    iou, acc = [], []
    for c in range(k):
        right = 0.0
        for p, t in pixels:
            if t == c and p == c:
                right += 1
            elif t == c and p in fathers.get(c, ()):
                called = [truth for name, truth in pixels if name == p]
                right += sum(truth in (c, p) for truth in called) / len(called)
        union = sum(c in (p, t) for p, t in pixels)
        there = sum(t == c for _, t in pixels)
        iou.append(right / union if there else np.nan)
        acc.append(right / there if there else np.nan)
    present = sum(any(c in pixel for pixel in pixels) for c in range(k))
    return iou, acc, np.nansum(iou) / present if present else np.nan


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equals_counting_pixel_by_pixel(case):
    k, pred, true, fathers = case
    names = [f"c{index}" for index in range(k)]
    conf = confusion_matrix(pred, true, k, 255)
    scores = sg_scores(conf, names, fathers)
    iou, acc, mean = pixel_by_pixel(*case)
    np.testing.assert_allclose([scores[f"SG-IoU-{n}"] for n in names], 100 * np.array(iou), rtol=1e-9)
    np.testing.assert_allclose([scores[f"SG-ACC-{n}"] for n in names], 100 * np.array(acc), rtol=1e-9)
    np.testing.assert_allclose(scores["SG-mIoU"], 100 * mean, rtol=1e-9)
    plain = scores_from_confusion(conf, names)
    assert all(np.isnan(scores[f"SG-{name}"]) or plain[name] <= scores[f"SG-{name}"] <= 100 + 1e-9 for name in plain)
    np.testing.assert_equal(sg_scores(conf, names, {}), {f"SG-{name}": value for name, value in plain.items()})


def test_only_the_child_gains():
    conf = np.array([[4, 0, 0], [4, 2, 0], [0, 0, 0]])  # class 0 half called 1; 1 all right
    np.testing.assert_allclose(credited_pixels(conf, {0: [1]}), [4 + 4 * (4 + 2) / 6, 2])
    np.testing.assert_allclose(credited_pixels(conf, {1: [0]}), [4, 2])


@pytest.mark.parametrize(
    ("fathers", "message"),
    [
        ({0: [3]}, r"names class 3, but the data set has classes 0\.\.2"),
        ({-1: [0]}, "names class -1"),
        ({1: [1]}, "class 1 its own parent"),
        ({1: [0, 0]}, "class 1 a parent twice"),
    ],
)
def test_tables_that_cannot_work(fathers, message):
    with pytest.raises(OvsegError, match=message):
        sg_scores(np.zeros((4, 4), dtype=np.int64), ["a", "b", "c"], fathers)


def test_a_file_names_classes_by_name_or_index(tmp_path):
    path = write(tmp_path / "t.json", '{"cat": ["animal"], "2": 3, "wall": ["stone wall", 1], "1": []}')
    table = read_table(path, protocol())
    assert table.fathers == {0: (1,), 2: (3,), 3: (1, 2)}
    entry = table.describe()
    assert (entry["origin"], entry["threshold"]) == (str(path), None)
    assert (entry["classes_with_fathers"], entry["pairs"], entry["mutual_pairs"]) == (3, 4, 2)
    again = read_table(write(tmp_path / "again.json", json.dumps(table.named())), protocol())
    assert again.fathers == table.fathers
    assert again.describe()["sha256"] == entry["sha256"]
    other = read_table(write(tmp_path / "other.json", '{"cat": "animal"}'), protocol())
    assert other.describe()["sha256"] != entry["sha256"]


def test_classes_of_the_same_name_are_distinguished_by_index(tmp_path):
    twice = protocol(("door", "wall", "door"), words=("door", "wall", "the other door"))
    with pytest.raises(OvsegError, match="'door', the name of 2 classes: give their indices"):
        read_table(write(tmp_path / "t.json", '{"door": "wall"}'), twice)
    table = read_table(write(tmp_path / "t.json", '{"2": "wall"}'), twice)
    assert table.named() == {"2": ["1"]}


def test_one_file_for_several_data_sets(tmp_path):
    path = write(tmp_path / "t.json", '{"sg_test": {"0": 1}, "empty": {}}')
    assert read_table(path, protocol()).fathers == {0: (1,)}
    assert read_table(path, protocol(dataset="empty")).fathers == {}
    with pytest.raises(OvsegError, match="tables for sg_test, empty, but none for third"):
        read_table(path, protocol(dataset="third"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cat": "animal", "cat": "wall"}', "the key 'cat' twice"),
        ('{"cat": "animal", "0": "wall"}', r"holds class 0 \('cat'\) twice"),
        ('{"cat": "anmal"}', "the class 'anmal', which the data set does not have"),
        ('{"cat": 1.5}', "the class 1.5"),
        ('{"cat": true}', "the class True"),
        ('{"cat": 7}', r"t\.json names class 7, but the data set has classes 0\.\.3"),
        ('["cat"]', "must hold"),
        ('{"cat": ', "is not valid JSON"),
    ],
)
def test_files_that_cannot_work(tmp_path, text, message):
    with pytest.raises(OvsegError, match=message):
        read_table(write(tmp_path / "t.json", text), protocol())


def test_missing_file(tmp_path):
    with pytest.raises(OvsegError, match=r"there is no .*nowhere\.json: check TEST\.SG_IOU_TABLE"):
        read_table(tmp_path / "nowhere.json", protocol())
    with pytest.raises(OvsegError, match=r"cannot read .*: check TEST\.SG_IOU_TABLE"):
        read_table(tmp_path, protocol())


def test_similar_texts_are_fathers_of_each_other():
    angles = np.radians([0, 20, 90, 100, 180])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    table = table_from_text(embeddings, [0, 1, 2, 3, 3], NAMES, np.cos(np.radians(20)) - 1e-9)
    assert table.fathers == {0: (1,), 1: (0,), 2: (3,), 3: (2,)}  # 3 by its nearer synonym
    assert table.describe()["mutual_pairs"] == table.describe()["pairs"] == 4
    assert table_from_text(embeddings, [0, 1, 2, 3, 3], NAMES, 0.99).fathers == {}
    with pytest.raises(OvsegError, match=r"SG_IOU_THRESHOLD is 1\.5"):
        table_from_text(embeddings, [0, 1, 2, 3, 3], NAMES, 1.5)


class _Reader:
    """Reads words letter by letter: the cosine of two words grows with the letters that they share."""

    def text_matrix(self, words):
        letters = torch.tensor([[float(word.count(chr(97 + k))) for k in range(26)] for word in words])
        return torch.cat([letters / letters.norm(dim=1, keepdim=True), torch.ones(1, 26) / 26**0.5])


def test_the_table_asks_for_the_words_of_the_protocol():
    cfg = get_cfg()
    cfg.TEST.SG_IOU_THRESHOLD = 0.85
    model = SimpleNamespace(clip_adapter=_Reader())
    words = [("cat", "act"), ("animal",), ("stone wall",), ("wall", "law l", "taac")]
    assert build_table(cfg, model, protocol(words=words)).fathers == {0: (3,), 3: (0,)}
    # four words, two classes: what is alike within a class says nothing
    assert build_table(cfg, model, protocol(("x", "y"), words=words, to_class=(0, 1, 1, 0))).fathers == {}
    MetadataCatalog.get("sg_iou_metadata").set(stuff_classes=["cat ", "act", "wall"], ignore_label=255)
    try:
        table = build_table(cfg, model, protocol_of("sg_iou_metadata"))
        assert table.named() == {"cat": ["act"], "act": ["cat"]}
    finally:
        MetadataCatalog.remove("sg_iou_metadata")
    with pytest.raises(OvsegError, match=r"has no CLIP to compare words by: give a table as TEST\.SG_IOU_TABLE"):
        build_table(cfg, torch.nn.Identity(), protocol())
