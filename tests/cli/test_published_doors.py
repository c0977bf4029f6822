"""main_demo.py, main_seg.py and main_pretrain.py: the published command lines."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

import main_demo
import main_pretrain
import main_seg
from ovseg.cli.options import parse_with_options
from ovseg.result.modes import MODES
from ovseg.result.palettes import voc_palette
from tests.tiny_published import REPO, make_tiny_ovsegmentor


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_ovsegmentor(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, size in (("a.b.jpg", (90, 70)), ("c.png", (64, 100)), ("c.jpg", (64, 64))):
        blocks = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        blocks.resize(size, Image.Resampling.NEAREST).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(*words):
    return main_demo.main([str(word) for word in words])


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as error:
        run(*words)
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def all_modes(tiny, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    options = ["--cfg", tiny[0], "--resume", tiny[1], "--image_folder", photos, "--output_folder", folder]
    assert run(*options, "--vis", *MODES, "--vocab", "cat", "dog", "fire truck", "bus", "--bg_thresh", 0.3) == 0
    return folder


def test_every_mode_keeps_the_names_and_sizes_of_the_images(all_modes, photos):
    files = {str(path.relative_to(all_modes)) for path in all_modes.rglob("*") if path.is_file()}
    stems = ("a.b", "c", "c-2")
    suffix = dict.fromkeys(MODES, ".jpg") | {"pred": ".png", "mask": ".png", "all_groups": "_layer0.jpg"}
    assert files == {f"{mode}/{stem}{suffix[mode]}" for mode in MODES for stem in stems}
    sizes = {"a.b": (90, 70), "c": (64, 64), "c-2": (64, 100)}
    for file in files:
        with Image.open(all_modes / file) as image:
            assert image.size == sizes[file.partition("/")[2].rpartition(".")[0].removesuffix("_layer0")], file
    assert {path.name for path in photos.iterdir()} == {"a.b.jpg", "c.png", "c.jpg", "notes.txt"}  # nothing added


def test_label_maps_have_background_0_and_palettes(all_modes):
    seen = set()
    for stem in ("a.b", "c", "c-2"):
        with (
            Image.open(all_modes / "pred" / f"{stem}.png") as pred,
            Image.open(all_modes / "mask" / f"{stem}.png") as mask,
        ):
            assert pred.mode == mask.mode == "P"
            assert np.array_equal(np.asarray(pred), np.asarray(mask))
            assert np.array_equal(np.asarray(mask.convert("L")), np.asarray(mask))  # index = grey value
            colors = [tuple(pred.getpalette()[3 * k : 3 * k + 3]) for k in range(5)]
            assert colors[0] == (0, 0, 0) and len(set(colors)) == 5  # the last class has a colour, too
            seen |= set(np.unique(pred))
    assert seen <= set(range(5)) and len(seen) > 1


def test_background_is_left_and_classes_are_blended(all_modes, photos):
    with Image.open(photos / "c.png") as file:
        image = np.asarray(file.convert("RGB")).astype(int)
    with Image.open(all_modes / "pred" / "c-2.png") as pred:
        labels, colors = np.asarray(pred), np.asarray(pred.convert("RGB")).astype(int)
    with Image.open(all_modes / "input_pred" / "c-2.jpg") as file:
        drawn = np.asarray(file).astype(int)
    expected = np.where(labels[:, :, None] > 0, (image + colors) / 2, image)
    assert np.abs(drawn - expected).mean() < 6  # JPEG


def test_data_sets_as_vocabularies(tiny, photos, tmp_path):
    options = ["--cfg", tiny[0], "--resume", tiny[1], "--image_folder", photos, "--output_folder", tmp_path]
    assert run(*options, "--vis", "pred", "--vocab", "voc") == 0
    with Image.open(tmp_path / "pred" / "a.b.png") as pred:
        assert np.array_equal(np.reshape(pred.getpalette(), (-1, 3))[:21], voc_palette()[:21])
        assert np.asarray(pred).max() <= 20


def test_no_background_gives_every_pixel_a_word(tiny, photos, tmp_path):
    options = ["--cfg", tiny[0], "--resume", tiny[1], "--image_folder", photos, "--output_folder", tmp_path]
    assert run(*options, "--vis", "mask", "--vocab", "background", "cat", "dog", "--no_background") == 0
    with Image.open(tmp_path / "mask" / "c.png") as mask:
        assert set(np.unique(mask)) <= {1, 2}


def test_bad_input_is_refused_by_name(tiny, photos, tmp_path, capsys):
    good = {
        **{"--cfg": [tiny[0]], "--resume": [tiny[1]], "--image_folder": [photos]},
        **{"--output_folder": [tmp_path / "out"], "--vocab": ["cat", "dog"], "--vis": ["pred"]},
    }
    empty, inputs = tmp_path / "empty", tmp_path / "pred"
    empty.mkdir()
    shutil.copytree(photos, inputs)
    (tmp_path / "wide").mkdir()
    other_width = make_tiny_ovsegmentor(tmp_path / "wide", output_dim=12)[1].rename(tmp_path / "wide.safetensors")
    cases = [
        ({"--resume": []}, ["--resume", "random"]),
        ({"--resume": [tmp_path / "no.pth"]}, ["no.pth", "does not exist"]),
        ({"--image_folder": []}, ["--image_folder is missing"]),
        ({"--image_folder": [tmp_path / "nowhere"]}, ["nowhere", "not a folder"]),
        ({"--image_folder": [empty]}, ["empty", "no images"]),
        ({"--output_folder": []}, ["--output_folder is missing"]),
        ({"--vis": ["pred", "input_seg"]}, ["--vis input_seg", "input_pred"]),
        ({"--vis": ["heat"]}, ["--vis heat", "final_group"]),
        ({"--vocab": ["cat", "cat"]}, ["--vocab", "twice"]),
        ({"--vocab": ["background"]}, ["--vocab", "at least one word"]),
        ({"--vocab": ["cat", "background"]}, ["--vocab has background behind other words", "leave it out"]),
        ({"--vocab": [f"word{k}" for k in range(256)]}, ["--vis pred", "257"]),
        ({"--opts": ["model.nothing=1"]}, ["model.nothing"]),
        ({"--opts": ["NOTHING=1"]}, ["NOTHING"]),
        ({"--cfg": [tmp_path / "no.yml"]}, ["no.yml"]),
        ({"--output_folder": [tmp_path], "--image_folder": [inputs]}, ["--output_folder", "also an input folder"]),
        ({"--opts": ["model.img_encoder.depths"]}, ["model.img_encoder.depths lacks a value"]),
        ({"--opts": ["model.text_encoder.vocab=gone.txt"]}, ["gone.txt", "TEXT_ENCODER.VOCAB"]),
        ({"--opts": ["model.text_encoder.config=gone.json"]}, ["gone.json", "TEXT_ENCODER.CONFIG", "no such file"]),
        ({"--bg_thresh": [0.3], "--no_background": [""]}, ["--bg_thresh", "--no_background", "give one"]),
        ({"--resume": [other_width]}, ["wide.safetensors does not fit this model", "use the --cfg that"]),
        (
            {"--resume": [REPO / "weights" / "toy" / "ovseg.safetensors"]},
            ["not a checkpoint of this model", "as --cfg"],
        ),
        ({"--vocab": [""]}, ["word 1 in --vocab is blank"]),
    ]
    for changes, parts in cases:
        options = [word for key, values in (good | changes).items() if values for word in (key, *values)]
        options = [word for word in options if word != ""] if "--no_background" in changes else options
        message = refusal(capsys, *options)
        assert [part for part in parts if part not in message] == [], message
        assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("door", [main_pretrain, main_seg])
def test_the_published_options_are_read(door):
    line = "--cfg c.yml --opts a.b=1 c.d=[x,y] --resume F --output O --tag T --local_rank 0"
    args = parse_with_options(door.build_parser(), line.split())
    assert (args.cfg, args.opts, args.resume, args.output) == ("c.yml", ["a.b=1", "c.d=[x,y]"], "F", "O")
