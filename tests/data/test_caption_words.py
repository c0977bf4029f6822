"""Words of captions: settings, the word file, its extraction."""

from __future__ import annotations

import logging
import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.config import get_cfg
from ovseg.config.limits import check_config
from ovseg.data import word_extraction
from ovseg.data.caption_words import TaggedWords, WordSettings, configured_words
from ovseg.data.word_extraction import extract_words
from ovseg.data.word_file import WordFile
from ovseg.errors import OvsegError
from tests.scripts import load_script

NAME = "caption_words_test"
CAPTIONS = ["Two brown dogs on a lawn", "a black-haired man", "It is there.", "a photo of many red circles"]
WORDS = [("brown", "dogs", "lawn"), ("black", "haired", "man"), (), ("photo", "many", "red", "circles")]


@pytest.fixture
def cfg():
    records = [
        {"file_name": "a.png", "captions": CAPTIONS[:2]},
        {"file_name": "b.png", "captions": [*CAPTIONS[1:], " "]},
    ]
    DatasetCatalog.register(NAME, lambda: records)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = "OpenSeg", (NAME,)
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.get(NAME)
    MetadataCatalog.remove(NAME)


def captions():
    return CAPTIONS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (WordSettings(), WORDS),
        (WordSettings(pos="noun"), [("dogs", "lawn"), ("man",), (), ("photo", "circles")]),
        (WordSettings(stop_words=True), [*WORDS[:3], ("red", "circles")]),
        (
            WordSettings(form="phrase", stop_words=True),
            [("brown dog", "lawn"), ("black-haired man",), (), ("red circle",)],
        ),
        (WordSettings(form="known", words=("red circle", "dog", "hair")), [("dog",), (), (), ("red circle",)]),
    ],
)
def test_forms(settings, words):
    extract = TaggedWords(settings)
    assert [extract(caption) for caption in CAPTIONS] == words
    assert pickle.loads(pickle.dumps(extract))(CAPTIONS[0]) == words[0]


def test_known_words_need_a_vocabulary(cfg):
    cfg.INPUT.CAPTION.FORM = "known"
    with pytest.raises(OvsegError, match=r"INPUT\.CAPTION\.WORDS is empty: name a label set"):
        WordSettings.from_config(cfg)
    cfg.INPUT.CAPTION.WORDS = "toy_base"
    assert "red star" in WordSettings.from_config(cfg).words
    cfg.INPUT.CAPTION.FORM = "word"
    with pytest.raises(OvsegError, match=r"INPUT\.CAPTION\.WORDS is 'toy_base': .*FORM known"):
        check_config(cfg)


def test_words_are_tagged_without_a_file(cfg, caplog):
    with caplog.at_level(logging.INFO):
        words = configured_words(cfg, captions)
    assert words(CAPTIONS[0]) == WORDS[0]
    assert "words of captions: by the tagger textblob, form word, stop_words False, pos noun+adj" in caplog.text


def test_word_file(cfg, tmp_path, caplog):
    path = tmp_path / "words.jsonl"
    assert extract_words(cfg, path) == (len(CAPTIONS), "textblob")
    assert not list(tmp_path.glob(".*parts*"))
    file = WordFile.read(path)
    assert len(file) == len(CAPTIONS) and [file(caption) for caption in CAPTIONS] == WORDS
    assert file.datasets == [NAME] and file.tagger == "textblob"
    cfg.INPUT.CAPTION.WORD_FILE = str(path)
    with caplog.at_level(logging.INFO):
        words = configured_words(cfg, captions)
    assert words(CAPTIONS[3]) == WORDS[3] and "words.jsonl, by the tagger textblob" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("POS", "noun", r"was made with INPUT\.CAPTION\.POS noun\+adj, but it is noun now"),
        ("TAGGER", "rules", r"was made with INPUT\.CAPTION\.TAGGER textblob, but it is rules now"),
        ("STOP_WORDS", True, r"was made with INPUT\.CAPTION\.STOP_WORDS False, but it is True"),
        ("FORM", "phrase", r"was made with INPUT\.CAPTION\.FORM word, but it is phrase"),
    ],
)
def test_word_file_of_other_settings(cfg, tmp_path, key, value, message):
    cfg.INPUT.CAPTION.WORD_FILE = str(tmp_path / "words.jsonl")
    extract_words(cfg, tmp_path / "words.jsonl")
    cfg.INPUT.CAPTION[key] = value
    with pytest.raises(OvsegError, match=rf"words\.jsonl {message}.*extract_caption_words"):
        configured_words(cfg, captions)


def test_word_file_of_other_known_words(cfg, tmp_path):
    cfg.INPUT.CAPTION.FORM, cfg.INPUT.CAPTION.WORDS = "known", "toy"
    cfg.INPUT.CAPTION.WORD_FILE = str(tmp_path / "words.jsonl")
    extract_words(cfg, tmp_path / "words.jsonl")
    assert configured_words(cfg, captions)(CAPTIONS[3]) == ("red circle",)
    cfg.INPUT.CAPTION.WORDS = "toy_base"
    with pytest.raises(OvsegError, match=r"INPUT\.CAPTION\.WORDS 90 words, sha256 .* but it is \d+ words, sha256"):
        configured_words(cfg, captions)


def test_word_file_of_other_captions(cfg, tmp_path):
    cfg.INPUT.CAPTION.WORD_FILE = str(tmp_path / "words.jsonl")
    extract_words(cfg, tmp_path / "words.jsonl")
    message = rf"words\.jsonl, made of {NAME}, lacks 1 of 5 captions of DATASETS\.TRAIN, such as 'a horse'"
    with pytest.raises(OvsegError, match=message):
        configured_words(cfg, lambda: [*CAPTIONS, "a horse"])


def test_damaged_word_files(cfg, tmp_path):
    path = tmp_path / "words.jsonl"
    extract_words(cfg, path)
    content = path.read_bytes()
    for damaged, message in [
        (content[:-9], "cut off or damaged"),
        (content.replace(b"brown", b"green"), "cut off or damaged"),
        (b"", "not a word file"),
        (b"[1]\n", "not a word file"),
        (content.replace(b'"caption_words": 1', b'"caption_words": 9'), "has the format 9"),
        (content[:40], "not a word file"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(OvsegError, match=message):
            WordFile.read(path)
    path.unlink()
    with pytest.raises(OvsegError, match="there is no word file"):
        WordFile.read(path)


def test_an_interrupted_extraction_continues(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(word_extraction, "PART", 1)
    write, written = word_extraction._write_part, []

    def interrupted(words, part, chunk):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(chunk)
        return write(words, part, chunk)

    path = tmp_path / "words.jsonl"
    monkeypatch.setattr(word_extraction, "_write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_words(cfg, path)
    assert not path.exists()
    monkeypatch.setattr(word_extraction, "_write_part", lambda *args: written.append(args[2]) or write(*args))
    extract_words(cfg, path)
    assert sorted(map(tuple, written)) == sorted((caption,) for caption in CAPTIONS)  # none twice
    assert [WordFile.read(path)(caption) for caption in CAPTIONS] == WORDS


def test_several_processes_write_the_same_file(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(word_extraction, "PART", 2)
    extract_words(cfg, tmp_path / "one.jsonl")
    extract_words(cfg, tmp_path / "two.jsonl", workers=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_the_tool(cfg, tmp_path, capsys):
    main = load_script("tools/extract_caption_words.py").main
    path, config = tmp_path / "words.jsonl", tmp_path / "config.yaml"
    config.write_text(f"MODEL: {{META_ARCHITECTURE: OpenSeg}}\nDATASETS: {{TRAIN: [{NAME}]}}\n")
    arguments = ["--config-file", str(config), "--output", str(path), "INPUT.CAPTION.POS", "noun"]
    assert main(arguments) == 0
    assert "the words of 4 captions, by the tagger textblob" in capsys.readouterr().out
    assert WordFile.read(path)(CAPTIONS[0]) == ("dogs", "lawn")
    with pytest.raises(SystemExit):
        main([*arguments, "--workers", "0"])


def test_no_captions(cfg, tmp_path):
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: [{"file_name": "a.png", "annotations": []}])
    with pytest.raises(OvsegError, match=rf"no image of DATASETS\.TRAIN \({NAME}\) has captions"):
        extract_words(cfg, tmp_path / "words.jsonl")


def test_captions_are_checked_as_in_training(cfg, tmp_path):
    records = DatasetCatalog.get(NAME)
    records.append({"file_name": "c.png", "captions": None})
    assert extract_words(cfg, tmp_path / "words.jsonl")[0] == len(CAPTIONS)
    records.append({"file_name": "d.png", "captions": "a dog"})
    with pytest.raises(OvsegError, match=rf"captions of d\.png in data set '{NAME}' are 'a dog': give a list of texts"):
        extract_words(cfg, tmp_path / "words.jsonl")


def test_known_words_of_the_toy_world_are_true():
    """Every word of a caption is in the scene, and every thing that a caption names is found."""
    from ovseg.toy import CLASS_NAMES, make_scene

    extract = TaggedWords(WordSettings(form="known", words=CLASS_NAMES))
    found = true = named = 0
    for seed in range(4):
        scene = make_scene(seed)
        there = {thing.name for thing in scene.things} | {
            CLASS_NAMES[index] for index in set(scene.labels.flat) - {255}
        }
        for caption in scene.captions:
            words = set(extract(caption))
            written = {name for name in CLASS_NAMES if f" {name} " in f" {caption.replace(',', ' ')} "}
            found, true, named = found + len(words), true + len(words & there), named + len(written)
            assert words <= written
    assert true == found > 20 and found > 0.97 * named
