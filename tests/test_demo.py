"""demo.py, called in process; one run as a user would start it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import demo
from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.errors import OvsegError
from ovseg.io.inputs import choose_outputs, find_inputs
from ovseg.result.segmentation import Segmentation
from ovseg.segmenter import Segmenter
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


class Halves:
    """Stands in for a segmenter: left half is the first word, right half the last."""

    def __init__(self):
        self.calls = 0

    def prepare(self, vocabulary):
        return vocabulary

    def __call__(self, image, vocabulary):
        from ovseg.io.images import read_image

        self.calls += 1
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        labels = np.zeros(pixels.shape[:2], int)
        labels[:, pixels.shape[1] // 2 :] = len(vocabulary) - 1
        source = None if isinstance(image, np.ndarray) else str(image)
        return Segmentation.from_maps(
            labels, np.ones(labels.shape), vocabulary.foreground, pixels, source, background=vocabulary.background
        )


@pytest.fixture
def halves(monkeypatch):
    segmenter = Halves()
    monkeypatch.setattr(Segmenter, "from_config", classmethod(lambda cls, *args, **kwargs: segmenter))
    return segmenter


def save_image(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def save_video(path, frames=3, size=(48, 32)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 5, size)
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for k in range(frames):
        writer.write(np.full((size[1], size[0], 3), 60 * k % 256, np.uint8))
    writer.release()


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_originals_command_runs_as_written(here, tiny):
    config, weights = tiny
    save_image(here / "a.jpg")
    save_image(here / "b.jpg")
    command = f"--config-file {config} --class-names Oculus Ukulele --input a.jpg b.jpg --output ./pred"
    assert demo.main([*command.split(), "--opts", "MODEL.WEIGHTS", str(weights)]) == 0
    assert names(here / "pred") == ["a.json", "a.png", "a_labels.png", "b.json", "b.png", "b_labels.png"]
    assert np.array(Image.open("pred/a_labels.png")).shape == (30, 40)
    assert json.loads(Path("pred/b.json").read_text())["names"] == ["Oculus", "Ukulele"]


def test_one_word_shared_by_several_images_stays_one_word(here, tiny):
    config, weights = tiny
    save_image(here / "in" / "a.jpg")
    save_image(here / "in" / "b.jpg")
    opts = ["MODEL.WEIGHTS", str(weights), "MODEL.META_ARCHITECTURE", "OVSegDEMO"]
    opts += ["MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT", "0.0"]
    assert demo.main(["--config-file", str(config), "--class-names", "cat", "--input", "in", "--opts", *opts]) == 0
    for stem in ("a", "b"):
        assert json.loads((here / demo.DEFAULT_OUTPUT / f"{stem}.json").read_text())["names"] == ["cat"]


def test_one_bad_file_does_not_stop_the_rest(here, halves, capfd):
    save_image(here / "in" / "a.png")
    (here / "in" / "b.jpg").write_bytes(b"")
    (here / "in" / "c.jpg").write_bytes(b"<html></html>")
    save_image(here / "in" / "d.png")
    assert demo.main(["--class-names", "cat", "dog", "--input", "in", "absent.png", "--output", "out"]) == 1
    assert names(here / "out") == ["a.json", "a.png", "a_labels.png", "d.json", "d.png", "d_labels.png"]
    out, err = capfd.readouterr()
    assert "2 of 5 done; results in out" in out and "in/a.png -> out/a.png: cat 50%, dog 50%" in out
    listed = err.split("3 could not be segmented:")[1]
    assert "absent.png: there is no such file or folder" in listed
    assert "b.jpg is empty (0 bytes)" in listed and "c.jpg is a web page" in listed
    assert "Traceback" not in err


def test_an_unexpected_error_is_shown_and_does_not_stop_the_rest(here, monkeypatch, capfd):
    class Fragile(Halves):
        def __call__(self, image, vocabulary):
            if image.shape[:2] == (7, 7):
                raise ZeroDivisionError("a defect")
            return super().__call__(image, vocabulary)

    monkeypatch.setattr(Segmenter, "from_config", classmethod(lambda cls, *args, **kwargs: Fragile()))
    save_image(here / "in" / "a.png", size=(7, 7))
    save_image(here / "in" / "b.png")
    assert demo.main(["--class-names", "cat", "--input", "in", "--output", "out"]) == 1
    assert "b.png" in names(here / "out")
    assert "a.png: unexpected ZeroDivisionError (see above): please report it" in capfd.readouterr().err


def test_results_of_equal_names_do_not_overwrite_each_other(here, halves):
    for file in ("x/a.png", "y/a.png", "y/a.jpg", "y/a_labels.png", "y/a-2.png"):
        save_image(here / file)
    assert demo.main(["--class-names", "cat", "--input", "x", "y", "x/a.png", "--output", "out"]) == 0
    sources = {json.loads(file.read_text())["image"] for file in (here / "out").glob("*.json")}
    assert {Path(source) for source in sources} == {Path(f) for f in ("x/a.png", "y/a.png", "y/a.jpg")} | {
        Path("y/a_labels.png"),
        Path("y/a-2.png"),
    }
    assert halves.calls == 5


def test_skip_existing_goes_on_where_it_stopped(here, halves, capfd):
    save_image(here / "in" / "a.png")
    command = ["--class-names", "cat", "--input", "in", "--output", "out", "--skip-existing"]
    assert demo.main(command) == 0
    save_image(here / "in" / "b.png")
    assert demo.main(command) == 0 and halves.calls == 2
    assert "1 of 2 inputs have results already" in capfd.readouterr().out
    command[1] = "dog"  # other words are another question
    assert demo.main(command) == 0 and halves.calls == 4
    (here / "out" / "a.json").write_text("{")  # as left by an older crash
    assert demo.main(command) == 0 and halves.calls == 5


def test_existing_results_are_replaced(here, halves):
    save_image(here / "a.png")
    for word in ("cat", "dog"):
        assert demo.main(["--class-names", word, "--input", "a.png", "--output", "out"]) == 0
    assert json.loads((here / "out" / "a.json").read_text())["names"] == ["dog"]


def test_single_output_file(here, halves, capfd):
    save_image(here / "a.png")
    assert demo.main(["--class-names", "cat", "[dog]", "--input", "a.png", "--output", "new/x.jpg"]) == 0
    assert names(here / "new") == ["x.jpg", "x.json", "x_labels.png"]
    assert Image.open("new/x.jpg").format == "JPEG"
    assert "[dog]" in capfd.readouterr().out


def test_vocabulary_file_and_label_set(here, halves):
    save_image(here / "a.png")
    (here / "words.txt").write_text("cat: kitty\n# no\nпёс\n", encoding="utf-8")
    assert demo.main(["--vocabulary", "words.txt", "--input", "a.png", "--output", "one"]) == 0
    assert json.loads((here / "one" / "a.json").read_text(encoding="utf-8"))["names"] == ["cat", "пёс"]
    assert demo.main(["--label-set", "pascal_context_459", "--input", "a.png", "--output", "two"]) == 0
    assert np.array(Image.open("two/a_labels.png")).dtype == np.uint16


def test_a_list_of_classes_with_ids(here, halves):
    save_image(here / "a.png")
    (here / "engineered.txt").write_text("0:invalid_class_id\n1:cat,kitty,cats\n2:dog,puppy\n")
    assert demo.main(["--vocabulary", "engineered.txt", "--input", "a.png", "--output", "one"]) == 0
    assert json.loads((here / "one" / "a.json").read_text())["names"] == ["cat", "dog"]


def test_unknown_below_a_score(here, tiny, capfd):
    """Of the tiny model, scores are low: an option of the command line, of a configuration, and of a call."""
    save_image(here / "a.png")
    config, weights = tiny[:2]
    common = ["--config-file", str(config), "--class-names", "cat", "dog", "--input", "a.png"]
    opts = ["--opts", "MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu"]
    shares = []
    for option in ([], ["--min-score", "1000"]):
        assert demo.main([*common, *option, *opts]) == 0
        shares.append(json.loads((here / "predictions" / "a.json").read_text())["unlabelled_fraction"])
    assert shares[0] < shares[1] == 1
    segment = Segmenter.from_config(config, weights, ["TEST.BACKGROUND_THRESHOLD", 1000], device="cpu")
    assert segment.min_score == 1000 and segment("a.png", ["cat", "dog"]).found == ()
    assert segment("a.png", ["cat", "dog"], min_score=-1).found != ()
    with pytest.raises(SystemExit):
        demo.main([*common, "--min-score", "low"])


def test_one_text_of_words_with_synonyms(here, halves, capfd):
    save_image(here / "a.png")
    assert demo.main(["--class-names", "person, child; dog", "--input", "a.png"]) == 0
    assert json.loads((here / "predictions" / "a.json").read_text())["names"] == ["person", "dog"]
    assert "one word" not in capfd.readouterr().err
    assert demo.main(["--class-names", "person, child ;dog;", "--input", "a.png", "--output", "b"]) == 0
    assert json.loads((here / "b" / "a.json").read_text())["names"] == ["person", "dog"]
    with pytest.raises(SystemExit):
        demo.main(["--class-names", "person,; dog", "--input", "a.png"])
    assert "a comma too many" in capfd.readouterr().err


def test_videos(here, halves):
    save_video(here / "a.mp4")
    (here / "b.mp4").write_bytes(b"not a video")
    assert demo.main(["--class-names", "cat", "dog", "--input", "a.mp4", "b.mp4", "--output", "out"]) == 1
    assert names(here / "out") == ["a.json", "a.mp4"]
    summary = json.loads((here / "out" / "a.json").read_text())
    assert summary["frames"] == 3 and summary["mean_fractions"] == [0.5, 0.5]
    video = cv2.VideoCapture("out/a.mp4")
    shapes = [frame.shape for ok, frame in iter(video.read, (False, None)) if ok]
    assert shapes == [(32, 48, 3)] * 3


WORDS = {
    "list": ["--class-names", "cat", "dog"],
    "text": ["--class-names", "cat, kitty; dog"],
    "file": ["--vocabulary", "words.txt"],
    "label set": ["--label-set", "pascal_voc_20"],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("background", [["other, background"], ["other", "background"], ["other,", "background"]])
def test_what_background_words_get_is_unlabelled(here, halves, words, background):
    save_image(here / "a.png")
    (here / "words.txt").write_text("cat\ndog\n")
    assert demo.main([*words, "--background", *background, "--input", "a.png"]) == 0
    written = json.loads((here / "predictions" / "a.json").read_text())
    assert written["background"] == ["other", "background"] and not {"other", "background"} & set(written["names"])
    assert written["unlabelled_fraction"] == 0.5  # the right half: the last word, which is background
    assert np.array(Image.open("predictions/a_labels.png"))[0].tolist() == [0] * 20 + [255] * 20


def test_other_background_words_are_another_question(here, halves):
    save_image(here / "a.png")
    command = ["--class-names", "cat", "--input", "a.png", "--skip-existing"]
    for background in ([], ["--background", "other"], ["--background", "other"], ["--background", "wall"]):
        assert demo.main([*command, *background]) == 0
    assert halves.calls == 3


def test_background_and_colours_of_videos(here, halves):
    save_video(here / "a.mp4")
    assert demo.main(["--class-names", "cat", "--background", "other", "--input", "a.mp4", "--output", "out"]) == 0
    summary = json.loads((here / "out" / "a.json").read_text())
    assert (summary["names"], summary["background"], summary["mean_fractions"]) == (["cat"], ["other"], [0.5])


def test_videos_that_hold_nothing(here, halves, capfd):
    save_video(here / "whole.mp4", frames=20)
    content = (here / "whole.mp4").read_bytes()
    save_video(here / "none.avi", frames=0)
    (here / "cut.mp4").write_bytes(content[: len(content) // 2])
    (here / "empty.mp4").write_bytes(b"")
    files = ["none.avi", "cut.mp4", "empty.mp4"]
    assert demo.main(["--class-names", "cat", "--input", *files, "--output", "out"]) == 1
    err = capfd.readouterr().err
    assert "3 could not be segmented" in err and "Traceback" not in err and "please report" not in err
    assert not (here / "out").exists() or names(here / "out") == []


@pytest.mark.parametrize("suffix", ["png", "mp4"])
def test_ctrl_c_leaves_no_half_written_file(here, monkeypatch, suffix):
    class Interrupted(Halves):
        def __call__(self, image, vocabulary):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(image, vocabulary)

    monkeypatch.setattr(Segmenter, "from_config", classmethod(lambda cls, *args, **kwargs: Interrupted()))
    (here / "in").mkdir()
    if suffix == "mp4":
        save_video(here / "in" / "a.mp4")
    else:
        for k in range(3):
            save_image(here / "in" / f"{k}.png")
    with pytest.raises(SystemExit) as stop:
        demo.main(["--class-names", "cat", "--input", "in", "--output", "out"])
    assert stop.value.code == 130
    expected = [] if suffix == "mp4" else [f"{k}{end}" for k in range(2) for end in (".json", ".png", "_labels.png")]
    assert (names(here / "out") if (here / "out").exists() else []) == expected


def test_inputs_are_files_folders_and_patterns(here):
    for file in ("a.JPG", "b.png", "c.txt", ".hidden.png", "sub/d.webp", "[1].png"):
        save_image(here / "f" / file) if not file.endswith("txt") else (here / "f" / file).write_text("x")
    assert [str(f) for f in find_inputs(["f"])[0]] == ["f/[1].png", "f/a.JPG", "f/b.png"]
    assert [str(f) for f in find_inputs(["f/**/*.webp"])[0]] == ["f/sub/d.webp"]
    assert [str(f) for f in find_inputs(["f/[1].png", "f/*.png"])[0]] == ["f/[1].png", "f/b.png"]
    assert find_inputs(["f/*.tif"]) == ([], [("f/*.tif", "no image matches this pattern")])
    assert find_inputs(["f/c.txt"])[0] == [Path("f/c.txt")]  # given by name: tried, whatever its suffix


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("f", r"--output f is also an input folder"),
        ("f/b.png", "is one file, but there are 2 inputs"),
        ("f/c.txt", "exists and is not a folder"),
        ("n" * 300, "--output 'nn.*: File name too long"),
        ("a\0b", "null byte"),
        ("\ud800", "surrogates"),
        ("loop/x", "symbolic links"),
    ],
)
def test_outputs_that_cannot_be(here, output, message):
    save_image(here / "f" / "a.png")
    save_image(here / "f" / "b.png")
    (here / "f" / "c.txt").write_text("x")
    (here / "loop").symlink_to("loop")
    with pytest.raises(OvsegError, match=message):
        choose_outputs(find_inputs(["f"])[0], output, ["f"])


def test_an_input_is_never_overwritten(here):
    save_image(here / "a.png")
    assert choose_outputs([Path("a.png")], ".", ["a.png"]) == [Path("a-2.png")]
    with pytest.raises(OvsegError, match="would overwrite the input"):
        choose_outputs([Path("a.png")], "a.png", ["a.png"])
    with pytest.raises(OvsegError, match=r"can be written as \.png, \.jpg"):
        choose_outputs([Path("a.png")], "x.mp4", ["a.png"])


# what the user gives -> exit status, and what is printed; {w} and {c}: weights and configuration of the tiny model
WITH = "--class-names cat --input a.png --config-file {c} --opts MODEL.WEIGHTS no.pth"
BAD = {
    "no words": ("--input a.png", 2, "--class-names --vocabulary --label-set is required"),
    "empty list": ("--class-names --input a.png", 2, "--class-names: expected at least one argument"),
    "blank word": ("--class-names cat _ --input a.png", 2, "word 2 in --class-names is blank"),
    "word twice": ("--class-names cat Cat --input a.png", 2, "'Cat' comes twice in --class-names"),
    "trailing commas": ("--class-names cat, dog, --input a.png", 2, "separate words by blanks, not by commas"),
    "background alone": ("--background other --input a.png", 2, "--class-names --vocabulary --label-set is required"),
    "blank background": ("--class-names cat --input a.png --background other,,wall", 2, "--background .* blank word"),
    "background twice": ("--class-names cat --input a.png --background Cat", 2, "'Cat' comes twice in --class-names"),
    "two sources of words": ("--class-names cat --label-set x --input a.png", 2, "not allowed with argument"),
    "no vocabulary file": ("--vocabulary no.txt --input a.png", 2, "there is no vocabulary file no.txt"),
    "image as vocabulary": ("--vocabulary a.png --input a.png", 2, "a.png is not UTF-8 text"),
    "mistyped label set": ("--label-set ade20k_15 --input a.png", 2, "did you mean ade20k_150"),
    "no input": ("--class-names cat --input no.png", 1, "no.png: there is no such file or folder"),
    "web address": ("--class-names cat --input https://x.org/a.png", 2, "is a web address"),
    "empty folder": ("--class-names cat --input empty", 1, "empty: the folder holds no images"),
    "output is a file": ("--class-names cat --input a.png --output words.txt", 2, "exists and is not a folder"),
    "unknown option": ("--class-names cat --input a.png --frobnicate", 2, "unrecognized arguments: --frobnicate"),
    "no configuration": (
        "--class-names cat --input a.png --config-file no.yaml",
        2,
        "there is no configuration file no.yaml",
    ),
    "bad YAML": ("--class-names cat --input a.png --config-file bad.yaml", 2, "bad.yaml is not valid YAML"),
    "unknown key": (
        "--class-names cat --input a.png --config-file {c} --opts MODEL.WEIGTHS {w}",
        2,
        "unknown configuration key MODEL.WEIGTHS .*did you mean MODEL.WEIGHTS",
    ),
    "odd options": ("--class-names cat --input a.png --config-file {c} --opts MODEL.WEIGHTS", 2, "KEY and VALUE"),
    "no weights": ("--class-names cat --input a.png --config-file {c}", 2, "names no weights"),
    "missing weights": (
        WITH := "--class-names cat --input a.png --config-file {c} --opts MODEL.WEIGHTS no.pth",
        2,
        "no.pth",
    ),
    "empty weights": (WITH.replace("no.pth", "empty.pth"), 2, r"empty.pth is empty \(0 bytes\)"),
    "web page as weights": (WITH.replace("no.pth", "page.pth"), 2, "page.pth .*HTML"),
    "truncated weights": (WITH.replace("no.pth", "cut.safetensors"), 2, "cut.safetensors is truncated or damaged"),
    "truncated pickle": (WITH.replace("no.pth", "cut.pth"), 2, "cut.pth is truncated or damaged"),
    "image as weights": (WITH.replace("no.pth", "a.png"), 2, "a.png is not a weight file"),
    "other system": (WITH.replace("no.pth", "other.pth"), 2, "other.pth is not a checkpoint of this model"),
    "other CLIP size": (WITH.replace("no.pth", "wide.pth"), 2, "wide.pth does not fit this model"),
    "backbone alone": (WITH.replace("no.pth", "backbone.pth"), 2, "backbone.pth holds only a part of the model"),
    "pickle with code": (
        WITH.replace("no.pth", "code.pth"),
        2,
        "loading code.pth would run code, which is refused",
    ),
    "no such device": (
        WITH.replace("--opts", "--device cuda:77 --opts").replace("no.pth", "{w}"),
        2,
        "device cuda:77 is not available",
    ),
    "very long word": (
        "--class-names LONG --input a.png --output out --config-file {c} --opts MODEL.WEIGHTS {w}",
        2,
        r"very.* has 206 tokens, CLIP reads 75: shorten the word",
    ),
}


class Code:
    """Unpickling this would run a function."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("bad")
    save_image(folder / "a.png")
    (folder / "empty").mkdir()
    (folder / "words.txt").write_text("cat\n")
    (folder / "bad.yaml").write_text("MODEL: [\n")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.pth").write_bytes(b"<!DOCTYPE html>\n<html><body>Google Drive: quota exceeded</body></html>")
    state = read_state_dict(tiny[1])
    (folder / "cut.safetensors").write_bytes(tiny[1].read_bytes()[:5000])
    torch.save({"model": state}, folder / "whole.pth")
    (folder / "cut.pth").write_bytes((folder / "whole.pth").read_bytes()[:5000])
    torch.save({"img_encoder.layers.0.weight": torch.zeros(3), "text_encoder.x": torch.zeros(2)}, folder / "other.pth")
    wide = state | {"clip_adapter.non_object_embedding": torch.zeros(1, 768)}
    torch.save({"model": wide}, folder / "wide.pth")
    torch.save({k: v for k, v in state.items() if k.startswith("backbone.")}, folder / "backbone.pth")
    torch.save({"model": Code()}, folder / "code.pth")
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_sentence(case, bad_folder, tiny, monkeypatch, capfd):
    command, status, message = BAD[case]
    monkeypatch.chdir(bad_folder)
    before = names(bad_folder)
    words = {"_": "  ", "LONG": "very " * 200 + "long", "{c}": str(tiny[0]), "{w}": str(tiny[1])}
    try:
        code = demo.main([words.get(word, word) for word in command.split()])
    except SystemExit as stop:
        code = stop.code
    out, err = capfd.readouterr()
    print(f"{case} | {err.strip()[-400:]}")
    assert code == status
    assert re.search(message, err), err
    assert "Traceback" not in err and "this must never be printed" not in out + err
    assert names(bad_folder) == before  # nothing written, nothing half-written


def test_started_and_interrupted_as_a_user_would(tmp_path, tiny):
    """Ctrl-C while a real process works: status 130, and every file that is there is whole."""
    config, weights = tiny
    for k in range(200):
        save_image(tmp_path / "in" / f"{k:03}.png")
    command = [sys.executable, str(ROOT / "demo.py"), "--config-file", str(config), "--class-names", "cat", "dog"]
    command += [
        "--input",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
        "--opts",
        "MODEL.WEIGHTS",
        str(weights),
    ]
    # a shell that runs the tests in the background has SIGINT ignored, and children inherit that
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heeding)
    process.stdout.readline()  # the first result
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    written = names(tmp_path / "out")
    assert 0 < len(written) < 600 and not any(".tmp" in name for name in written)
    for name in written:
        if name.endswith(".json"):
            json.loads((tmp_path / "out" / name).read_text())
        else:
            Image.open(tmp_path / "out" / name).load()
