"""What is asked and what is scored: the protocols of PASCAL VOC, of one's own data, and of other libraries' names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovseg.config import get_cfg
from ovseg.data import catalog
from ovseg.data.benchmarks import find_dataset
from ovseg.data.mapper import SemSegTestMapper
from ovseg.data.protocol import protocol_of
from ovseg.data.requested_words import requested_words, seen_classes
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.evaluation.oracle_model import oracle_model
from ovseg.evaluation.sem_seg import SemSegEvaluator
from ovseg.naming.scores import best_synonym
from ovseg.vocabulary import Vocabulary, label_set

OWN = "protocol_test_own"
RECORDING = Path(__file__).parent / "openseg" / "openseg_formulas.npz"


@pytest.fixture
def own() -> Iterator:
    """The metadata of a data set of one's own."""
    yield MetadataCatalog.get(OWN).set(stuff_classes=["cat ", "red, brick wall"], ignore_label=255)
    MetadataCatalog.remove(OWN)


@pytest.mark.parametrize("name", ["toy_sem_seg_val", "ade20k_sem_seg_val", "pascal_context_59_sem_seg_val"])
def test_by_default_the_registered_names_are_asked_verbatim(name):
    protocol = protocol_of(name)
    names = tuple(entry.strip() for entry in MetadataCatalog.get(name).stuff_classes)
    assert protocol.vocabulary.class_names == list(names) and protocol.class_names == names
    assert protocol.to_class is None and protocol.variant == "names"
    sample = {"class_names": protocol.vocabulary.class_names}
    assert requested_words(sample) == requested_words({"meta": {"dataset_name": name}})
    label_map = np.arange(3)
    assert protocol.classes_of(label_map) is label_map


def test_synonyms_are_the_label_sets():
    protocol = protocol_of("ade20k_sem_seg_val", "synonyms")
    assert (protocol.tag, protocol.variant, protocol.background) == ("A-150", "synonyms", "none")
    assert protocol.vocabulary.class_names[0] == ("wall", "walls", "brick wall", "stone wall", "interior wall")
    assert protocol.record() != protocol_of("ade20k_sem_seg_val").record()


def test_left_over_words_are_background():
    """PAS-20b: 59 words, 21 classes; what got one of the 39 words that VOC has not is background."""
    protocol = protocol_of("pascalvoc20b_sem_seg_val")
    assert (protocol.tag, protocol.background) == ("PAS-20b", "leftover words")
    assert len(protocol.vocabulary) == 59 and len(protocol.class_names) == 21
    assert protocol.vocabulary.names[10] == "diningtable"  # VOC's word, not PASCAL Context's "table"
    predicted = np.array([[0, 19, 20], [21, 58, 5]], dtype=np.int32)
    classes = protocol.classes_of(predicted)
    assert classes.tolist() == [[0, 19, 20], [20, 20, 5]] and classes.dtype == np.int32
    synonyms = protocol_of("pascalvoc20b_sem_seg_val", "synonyms")
    assert synonyms.to_class is None and len(synonyms.vocabulary) == 21 and synonyms.background == "synonyms"


def test_background_with_synonyms_is_one_class():
    """PAS-21: 21 words, of which background has 40 texts, or some 70 with synonyms."""
    protocol = protocol_of("pascalvoc21_sem_seg_val")
    assert (protocol.tag, protocol.background, protocol.to_class) == ("PAS-21", "synonyms", None)
    words = requested_words({"class_names": protocol.vocabulary.class_names})
    assert len(words) == 21 and len(words.texts) == 60 and words.texts[:2] == ("background", "bag")
    logits = torch.zeros(1, 61)
    logits[0, words.texts.index("sky")] = 5  # the best synonym counts
    assert best_synonym(logits, words)[0].tolist() == [5, *[0] * 21]
    synonyms = protocol_of("pascalvoc21_sem_seg_val", "synonyms")
    assert len(synonyms.vocabulary.synonyms[0]) == len(label_set("pascal_voc_21").synonyms[0]) > 60
    assert synonyms.background == "synonyms"


def test_background_as_a_word_and_ignored():
    objects, ignored = protocol_of("coco_2017_val_object_sem_seg"), protocol_of("pascalvoc20_sem_seg_val")
    assert objects.background == "word" and objects.vocabulary.class_names[0] == "background"
    assert ignored.background == "ignored" and len(ignored.vocabulary) == 20
    assert protocol_of("mapillary_vistas_sem_seg_val").ignore_label == 65


def test_no_two_protocols_of_pascal_voc_look_alike():
    records = [
        protocol_of(f"pascalvoc{name}_sem_seg_val", variant).record()
        for name in ("20", "20b", "21")
        for variant in ("names", "synonyms")
    ]
    assert len({json.dumps(record, sort_keys=True) for record in records}) == 6
    assert {record["tag"] for record in records} == {"PAS-20", "PAS-20b", "PAS-21"}


def test_the_39_leftover_words_are_those_of_openseg():
    """OpenSeg's specification, 7.4, gives them in this order."""
    words = protocol_of("pascalvoc20b_sem_seg_val").vocabulary
    listed = """bag, bed, bench, book, building, cabinet, ceiling, cloth, computer, cup, door, fence, floor, flower,
        food, grass, ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate, road, rock, shelves,
        sidewalk, sky, snow, bedclothes, track, tree, truck, wall, water, window, wood"""
    assert words.background == tuple(word.strip() for word in listed.split(","))
    assert words.foreground == label_set("pascal_voc_20").names
    synonyms = protocol_of("pascalvoc21_sem_seg_val", "synonyms").vocabulary.synonyms[0]
    assert 65 <= len(synonyms) <= 75 and "clothes" not in synonyms and "plate" not in synonyms


def test_background_below_a_threshold():
    """PAS-21t: 20 words, 21 classes; where no word scores as much as the threshold is background."""
    protocol = protocol_of("pascalvoc21_sem_seg_val", threshold=0.5)
    assert (protocol.tag, protocol.background, protocol.synonyms) == ("PAS-21t", "threshold", "none")
    assert protocol.vocabulary.names == label_set("pascal_voc_20").names
    labels, scores = np.array([[0, 19, 4, 4]], dtype=np.int32), np.array([[0.9, 0.49, 0.5, -1.0]])
    classes = protocol.classes_of(labels, scores)
    assert classes.tolist() == [[1, 0, 5, 0]] and classes.dtype == np.int32
    with pytest.raises(OvsegError, match="needs the score_map"):
        protocol.classes_of(labels)
    synonyms = protocol_of("pascalvoc21_sem_seg_val", "synonyms", threshold=0.5)
    assert synonyms.vocabulary.synonyms[0] == label_set("pascal_voc_20").synonyms[0]
    objects = protocol_of("coco_2017_val_object_sem_seg", threshold=-3)
    assert (objects.tag, len(objects.vocabulary)) == ("COCO-Object-t", 80)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pascalvoc20_sem_seg_val", r"is 0\.4, but no class of 'pascalvoc20_sem_seg_val' is called 'background'"),
        ("pascalvoc20b_sem_seg_val", r"\(PAS-20b\) has words for background: evaluate on pascalvoc21"),
        ("toy_sem_seg_val", "no class of 'toy_sem_seg_val'"),
    ],
)
def test_a_threshold_needs_a_class_for_background(name, message):
    with pytest.raises(OvsegError, match=message):
        protocol_of(name, threshold=0.4)


def test_synonyms_as_words_until_there_are_pixels():
    region, pixel = (protocol_of("pascalvoc21_sem_seg_val", "synonyms", level) for level in ("region", "pixel"))
    assert (region.synonyms, pixel.synonyms) == ("region", "pixel")
    assert len(region.vocabulary) == 21 and region.to_class is None
    assert pixel.vocabulary.names == region.vocabulary.texts and pixel.class_names == region.class_names
    assert all(texts == (name,) for name, texts in zip(pixel.vocabulary.names, pixel.vocabulary.synonyms, strict=True))
    words = pixel.words_of_classes()
    assert sum(map(len, words)) == len(pixel.vocabulary) and words[0] == list(range(len(region.vocabulary.synonyms[0])))
    assert pixel.classes_of(np.array([0, words[0][-1], words[1][0], words[20][1]])).tolist() == [0, 0, 1, 20]
    both = protocol_of("pascalvoc21_sem_seg_val", "synonyms", "pixel", 0.5)
    assert both.classes_of(np.array([0, 0]), np.array([0.6, 0.4])).tolist() == [1, 0]
    plain = protocol_of("ade20k_sem_seg_val", "names", "pixel")
    assert plain == protocol_of("ade20k_sem_seg_val") and plain.synonyms == "none"  # one text each: no difference
    with pytest.raises(OvsegError, match=r"TEST\.SYNONYMS is 'image'; choose one of region, pixel"):
        protocol_of("ade20k_sem_seg_val", "synonyms", "image")


def test_the_mapper_says_which_words_were_seen(own, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png")}
    assert "seen" not in SemSegTestMapper(get_cfg(), OWN, ())(record)
    own.set(trainable_flag=[1, 0], vocabulary=Vocabulary.from_words([("cat", "kitty"), "wall"]))
    assert SemSegTestMapper(get_cfg(), OWN, ())(record)["seen"] == [1, 0]
    cfg = get_cfg()
    cfg.merge_from_list(["TEST.VOCABULARY", "synonyms", "TEST.SYNONYMS", "pixel"])
    sample = SemSegTestMapper(cfg, OWN, ())(record)
    assert sample["seen"] == [1, 1, 0]
    assert seen_classes(sample, sample["class_names"]).tolist() == [True, True, False]
    del own.trainable_flag
    own.set(trainable_flag=[1])
    with pytest.raises(OvsegError, match="trainable_flag of protocol_test_own has 1 values for 2 classes"):
        SemSegTestMapper(cfg, OWN, ())


def test_an_alias_has_the_record_of_what_it_names():
    ours, theirs = protocol_of("pascalvoc20b_sem_seg_val"), protocol_of("voc_2012_test_background_sem_seg")
    assert theirs.record() == ours.record() and theirs.dataset != ours.dataset


def test_records_are_plain_json():
    record = protocol_of("pascalvoc20b_sem_seg_val").record()
    assert json.loads(json.dumps(record)) == record
    assert record == {
        "dataset": "pascalvoc20b_sem_seg_val",
        "tag": "PAS-20b",
        "variant": "names",
        "vocabulary": "27913dab25b4",
        "num_words": 59,
        "num_classes": 21,
        "ignore_label": 255,
        "background": "leftover words",
        "synonyms": "none",
        "words": "all",
    }


def test_a_data_set_of_ones_own(own):
    protocol = protocol_of(OWN)
    assert protocol.vocabulary.class_names == ["cat", "red, brick wall"] and protocol.tag == OWN
    with pytest.raises(OvsegError, match="the classes of 'protocol_test_own' have no known ones"):
        protocol_of(OWN, "synonyms")
    with pytest.raises(OvsegError, match=r"TEST\.VOCABULARY is 'plain'; choose one of names, synonyms"):
        protocol_of(OWN, "plain")
    with pytest.raises(OvsegError, match="no stuff_classes"):
        protocol_of("protocol_test_nobody")
    own.set(vocabulary=Vocabulary.from_words([("cat", "kitty"), "red, brick wall"]))
    assert protocol_of(OWN).vocabulary.class_names == ["cat", "red, brick wall"]
    assert protocol_of(OWN, "synonyms").vocabulary.class_names == [("cat", "kitty"), "red, brick wall"]


def test_a_prompt_engineered_list_of_ones_own(own, tmp_path, caplog):
    path = tmp_path / "engineered.txt"
    path.write_text("1:cat,cats,kitty\n2:brick wall,red wall\n")
    protocol = protocol_of(OWN, str(path))
    assert protocol.vocabulary.class_names == [("cat", "cats", "kitty"), ("brick wall", "red wall")]
    assert protocol.class_names == ("cat", "red, brick wall") and protocol.to_class is None
    record = protocol.record()
    assert (record["variant"], record["synonyms"]) == ("list engineered.txt", "region") and not caplog.records
    assert record["vocabulary"] not in (protocol_of(OWN).record()["vocabulary"], None)
    pixel = protocol_of(OWN, str(path), "pixel")
    assert pixel.to_class == (0, 0, 0, 1, 1) and len(pixel.vocabulary) == 5
    path.write_text("1:roof\n2:door\n")
    protocol_of(OWN, str(path))
    assert "only 0 of 2 classes have a word in common" in caplog.text
    said = "engineered.txt numbers its words: the numbers are not read, the order of the lines counts"
    for numbers_matter in ("1:roof\n2:door\n", "1:roof,top\n3:door\n"):
        path.write_text(numbers_matter)
        caplog.clear()
        protocol_of(OWN, str(path))
        assert said in caplog.text
    path.write_text("1:cat\n2:wall\n3:sky\n")
    with pytest.raises(OvsegError, match=r"engineered\.txt has the names of 3 classes, but 'protocol_test_own' has 2"):
        protocol_of(OWN, str(path))


def test_a_list_for_pascal_voc_with_background(tmp_path):
    """A line for each of the 21 classes, or for each of the 59 words."""
    names = protocol_of("pascalvoc20b_sem_seg_val").vocabulary.names
    path = tmp_path / "voc.txt"
    path.write_text("".join(f"{index}:{name},{name}s\n" for index, name in enumerate(names)))
    words = protocol_of("pascalvoc20b_sem_seg_val", str(path))
    assert words.background == "leftover words" and words.to_class == (*range(20), *[20] * 39)
    assert words.vocabulary.synonyms[20] == ("bag", "bags")
    classes = [*names[:20], "background,sky,grass"]
    path.write_text("".join(f"{index}:{name}\n" for index, name in enumerate(classes)))
    classes = protocol_of("pascalvoc20b_sem_seg_val", str(path))
    assert classes.background == "synonyms" and classes.to_class is None


def test_background_of_pascal_voc_as_recorded():
    """Scores of 59 words, of which the last 39 are background, and of 20 words with background ignored."""
    with np.load(RECORDING) as file:
        recorded = {name: file[name] for name in file.files if name.startswith("vocbg_")}
    for name, words, kind in (("pascalvoc20b_sem_seg_val", 59, "21"), ("pascalvoc20_sem_seg_val", 20, "20")):
        protocol = protocol_of(name)
        assert len(protocol.vocabulary) == words
        predicted = protocol.classes_of(recorded["vocbg_logits59"][:, :words].argmax(1))
        truth = recorded[f"vocbg_gt{kind}"]
        assert np.array_equal(predicted, recorded[f"vocbg_pred{kind}"])
        raw = recorded["vocbg_raw_gt"]  # 0 is background
        expected = np.where(raw == 255, 255, np.where(raw == 0, 20 if kind == "21" else 255, raw - 1))
        assert np.array_equal(truth, expected)
        confusion = confusion_matrix(predicted.reshape(-1), truth.reshape(-1), int(kind), 255)
        score = scores_from_confusion(confusion, list(protocol.class_names))["mIoU-gt"]
        value = recorded["vocbg_miou21" if kind == "21" else "vocbg_miou20_background_ignored"]
        assert score == pytest.approx(float(value), abs=1e-9)


def test_a_vocabulary_of_another_size_is_refused(own):
    own.set(vocabulary=Vocabulary.from_words(["cat"]))
    with pytest.raises(OvsegError, match="has 2 classes but 1 words"):
        protocol_of(OWN)


def test_words_that_differ_in_case_only_are_refused_by_data_set(own):
    MetadataCatalog.remove(OWN)
    MetadataCatalog.get(OWN).set(stuff_classes=["cat", "Cat"])
    with pytest.raises(OvsegError, match="'Cat' comes twice in stuff_classes of protocol_test_own"):
        protocol_of(OWN)


def test_another_librarys_classes_are_asked_as_they_are():
    """Registered before us under a name that we know, with names of its own."""
    name = "ade20k_150_test_sem_seg"
    before = MetadataCatalog.pop(name)
    try:
        MetadataCatalog.get(name).set(stuff_classes=["wall", "shed"], ignore_label=255)
        protocol = protocol_of(name)
        assert protocol.vocabulary.class_names == ["wall", "shed"] and protocol.tag == name
    finally:
        MetadataCatalog.remove(name)
        MetadataCatalog.get(name).set(**{key: value for key, value in before.as_dict().items() if key != "name"})


def test_the_mapper_hands_on_the_words_of_the_variant(own, tmp_path):
    own.set(vocabulary=Vocabulary.from_words([("cat", "kitty"), "wall"]).with_templates(["a {}"]))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    cfg = get_cfg()
    record = {"file_name": str(tmp_path / "a.png")}
    sample = SemSegTestMapper(cfg, OWN, ("label_map",))(record)
    assert sample["class_names"].names == ("cat", "wall") and sample["class_names"].templates == ("a {}",)
    cfg.TEST.VOCABULARY = "synonyms"
    sample = SemSegTestMapper(cfg, OWN, ("label_map",))(record)
    words = requested_words(sample)
    assert words.texts == ("cat", "kitty", "wall") and words.templates == ("a {}",)


@pytest.fixture
def voc(tmp_path) -> Iterator[list[dict]]:
    """A PASCAL VOC with background as its last class: one row of pixels for an image, under its registered name."""
    name = "pascalvoc20b_sem_seg_val"
    loader, metadata = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    catalog.register_all(tmp_path)
    dataset = find_dataset(name)
    for folder in (dataset.images, dataset.labels):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (6, 1)).save(tmp_path / dataset.images / "2007_000033.jpg")
    labels = np.array([[0, 0, 20, 20, 5, 255]], dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / dataset.labels / "2007_000033.png")
    yield DatasetCatalog.get(name)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    DatasetCatalog.register(name, loader)
    MetadataCatalog.get(name).set(**{key: value for key, value in metadata.as_dict().items() if key != "name"})


@pytest.mark.parametrize("as_scores", [False, True])
def test_background_of_pascal_voc_from_labels_to_scores(voc, as_scores):
    """The model answers in 59 words; "sky" and "grass" on background are right, "grass" on an aeroplane is wrong."""
    words = protocol_of("pascalvoc20b_sem_seg_val").vocabulary.names
    sky, grass = words.index("sky"), words.index("grass")
    label_map = torch.tensor([[0, grass, sky, grass, 5, 7]])
    scores = torch.nn.functional.one_hot(label_map, len(words)).permute(2, 0, 1).float()
    evaluator = SemSegEvaluator("pascalvoc20b_sem_seg_val")
    evaluator.process(voc, [{"sem_seg": scores} if as_scores else {"label_map": label_map}])
    result = evaluator.evaluate()["sem_seg"]
    assert evaluator.confusion.shape == (22, 22)
    assert evaluator.confusion[20, 20] == 2 and evaluator.confusion[20, 0] == 1
    assert result["IoU-background"] == pytest.approx(100 * 2 / 3)
    assert result["IoU-aeroplane"] == pytest.approx(50) and result["IoU-bus"] == pytest.approx(100)
    assert result["pACC"] == pytest.approx(80)


def test_names_from_labels_need_words_that_are_classes():
    cfg = get_cfg()
    cfg.TEST.ORACLE = "labels"
    with pytest.raises(OvsegError, match=r"\(PAS-20b\) the words are not the classes"):
        oracle_model(cfg, torch.nn.Identity(), "pascalvoc20b_sem_seg_val")
    assert oracle_model(cfg, torch.nn.Identity(), "pascalvoc21_sem_seg_val").num_classes == 21
