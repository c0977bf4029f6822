from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from ovseg import Segmenter
from ovseg.checkpoint import save_safetensors
from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.data.mapper import TestResize
from ovseg.errors import OvsegError
from ovseg.result import of_model
from ovseg.vocabulary import Vocabulary
from tests.tiny_model import make_tiny_model


class LeftAndRight(torch.nn.Module):
    """Stands in for a model: left half class 0, right half the last class, the top row unpainted."""

    def __init__(self, others=False):
        super().__init__()
        self.others = others
        self.requests = []

    def forward(self, batch):
        self.requests += batch
        (request,) = batch
        assert request["outputs"] == ("label_map",)
        labels = torch.zeros(request["height"], request["width"], dtype=torch.int64)
        labels[:, request["width"] // 2 :] = len(request["class_names"]) - (0 if self.others else 1)
        scores = torch.full(labels.shape, 0.5)
        scores[0] = 0
        return [{"label_map": labels, "score_map": scores}]


def stand_in(others=False, min_size=64, max_size=256, antialias=True):
    return Segmenter(LeftAndRight(others), min_size=min_size, max_size=max_size, antialias=antialias)


def make_image(height=30, width=40):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_result_has_the_images_size_and_the_words_order():
    result = stand_in()(make_image(), ["cat", "sofa"])
    assert result.names == ("cat", "sofa") and result.label_map.shape == (30, 40)
    assert result.areas.tolist() == [29 * 20, 29 * 20]
    assert result.scores.tolist() == [0.5, 0.5]
    assert np.array_equal(result.image, make_image())


def test_words_of_a_list_that_changes():
    segment, words = stand_in(), ["cat", "sofa"]
    assert segment(make_image(), words).names == ("cat", "sofa") == segment(make_image(), words).names
    words[0] = "dog"
    assert segment(make_image(), words).names == ("dog", "sofa")
    synonyms = [["cat", "kitty"], "sofa"]
    for text in ("kitty", "tabby"):
        synonyms[0][1] = text
        segment(make_image(), synonyms)
        assert segment.model.requests[-1]["class_names"].synonyms == (("cat", text), ("sofa",))


def test_threads_with_words_of_their_own():
    segment = stand_in()

    def names(word):
        return [segment(make_image(), [word, "sofa"]).names for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for word, found in zip("abcd", pool.map(names, "abcd"), strict=True):
            assert set(found) == {(word, "sofa")}


def test_words_of_a_model_without_clip():
    assert stand_in().prepare(["cat", "sofa"]).names == ("cat", "sofa")


def test_model_sees_what_the_test_mapper_would_give_it():
    wanted = T.ResizeShortestEdge(64, 256).get_transform(make_image(30, 500)).apply_image(make_image(30, 500))
    segment = stand_in()
    segment(make_image(30, 500), ["cat"])
    (request,) = segment.model.requests
    assert np.array_equal(request["image"].permute(1, 2, 0).numpy(), wanted)
    assert (request["height"], request["width"]) == (30, 500)


def test_model_sees_pixels_that_opencv_resized():
    segment = stand_in(antialias=False)
    image = make_image(200, 150)
    segment(image, ["cat"])
    (request,) = segment.model.requests
    wanted = cv2.resize(image, (64, 85), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(request["image"].permute(1, 2, 0).numpy(), wanted)
    mapped = T.AugInput(image)
    TestResize(64, 256, antialias=False)(mapped)
    assert np.array_equal(mapped.image, wanted)


def test_files_arrays_and_pillow_images_are_the_same_image(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(make_image()).save(file)
    segment = stand_in()
    for image in (file, str(file), make_image(), Image.fromarray(make_image()), Image.open(file)):
        segment(image, ["cat"])
    first = segment.model.requests[0]["image"]
    assert all(torch.equal(request["image"], first) for request in segment.model.requests)
    assert segment(file, ["cat"]).source == str(file)


def test_grey_array():
    result = stand_in()(make_image()[:, :, 0], ["cat"])
    assert np.array_equal(result.image[..., 2], make_image()[:, :, 0])


def test_one_word_others_is_unlabelled_and_the_list_stays():
    words = ["cat"]
    result = stand_in(others=True)(make_image(), words)
    assert words == ["cat"] and result.names == ("cat",)
    assert result.areas.tolist() == [29 * 20]
    assert (result.label_map[:, 20:] == -1).all()


def test_synonyms_reach_the_model():
    segment = stand_in()
    segment(make_image(), Vocabulary.from_words([("cat", "kitty"), "dog"]))
    assert segment.model.requests[0]["class_names"].class_names == [("cat", "kitty"), "dog"]


def test_a_text_of_words_and_no_text_that_is_unclear():
    segment = stand_in()
    assert segment(make_image(), "cat, kitty; dog").names == ("cat", "dog")
    assert segment.model.requests[0]["class_names"].class_names == [("cat", "kitty"), "dog"]
    with pytest.raises(OvsegError, match="single text 'cat, dog': give a list"):
        segment(make_image(), "cat, dog")


def test_what_background_words_get_is_unlabelled():
    segment = stand_in()
    result = segment(make_image(), Vocabulary.from_words(["cat", "sofa"], background=[("wall", "walls")]))
    assert segment.model.requests[0]["class_names"].class_names == ["cat", "sofa", ("wall", "walls")]
    assert result.names == ("cat", "sofa") and result.areas.tolist() == [29 * 20, 0]
    assert (result.label_map[:, 20:] == -1).all()


def test_prompts_of_a_vocabulary_are_used(tiny):
    segment = Segmenter.from_config(*tiny)
    words = Vocabulary.from_words(["cat", "dog"])
    plain, own = segment(make_image(), words), segment(make_image(), words.with_templates(["{}, drawn by a child"]))
    adapter = segment.model.clip_adapter
    assert not np.array_equal(plain.scores, own.scores)
    adapter.text.templates = ("{}, drawn by a child",)
    np.testing.assert_array_equal(segment(make_image(), words).scores, own.scores)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20_000), (20_000, 1), (3, 5)])
def test_extreme_shapes(height, width):
    segment = stand_in()
    assert segment(make_image(height, width), ["cat"]).label_map.shape == (height, width)
    seen = segment.model.requests[0]["image"].shape
    assert min(seen) >= 1 and max(seen[1:]) <= 256


def test_maps_that_would_fill_the_memory_are_asked_smaller(monkeypatch):
    monkeypatch.setattr(of_model, "LARGEST_MAPS", (2 + of_model.RUNNING_BEST) * 30 * 40)
    segment = stand_in()
    assert segment(make_image(60, 80), ["cat", "dog"]).label_map.shape == (60, 80)
    request = segment.model.requests[0]
    assert (request["height"], request["width"]) == (30, 40)
    assert segment(make_image(60, 80), ["cat", "dog"]).areas.tolist() == [58 * 40, 58 * 40]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "must be uint8 with values 0..255, not float64"),
        (np.zeros((4, 4, 4), np.uint8), r"\(height, width, 3\) RGB .* not \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not \(0, 4, 3\)"),
        (7, "an image must be a file, a NumPy array or a Pillow image, not int"),
        ("absent.jpg", "there is no image absent.jpg"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(OvsegError, match=message):
        stand_in()(image, ["cat"])


@pytest.mark.parametrize(("words", "message"), [([], "is empty"), ("cat", "give a list"), ([""], "is blank")])
def test_bad_words(words, message):
    with pytest.raises(OvsegError, match=message):
        stand_in()(make_image(), words)


def test_out_of_memory_is_explained():
    class Greedy(torch.nn.Module):
        def forward(self, batch):
            return torch.empty(1 << 60)

    with pytest.raises(OvsegError, match=r"not enough memory to segment the image: lower INPUT\.MAX_SIZE_TEST"):
        Segmenter(Greedy(), min_size=64, max_size=64)(make_image(), ["cat"])


def test_defects_keep_their_traceback():
    class Broken(torch.nn.Module):
        def forward(self, batch):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Segmenter(Broken(), min_size=64, max_size=64)(make_image(), ["cat"])


def test_a_real_model_from_its_files(tiny):
    config, weights = tiny
    segment = Segmenter.from_config(config, weights, device="cpu")
    result = segment(make_image(), ["cat", ("sofa", "couch"), "кошка"])
    assert result.label_map.shape == (30, 40) and result.label_map.max() <= 2
    assert np.isclose(result.fractions.sum(), 1)  # painting by sums leaves nothing unlabelled
    again = Segmenter.from_config(config, weights)(make_image(), ["cat", ("sofa", "couch"), "кошка"])
    assert np.array_equal(again.label_map, result.label_map)


def test_words_that_clip_cannot_read_fail_before_any_image(tiny):
    segment = Segmenter.from_config(*tiny)
    assert segment.prepare(["cat", ("sofa", "couch")]).names == ("cat", "sofa")
    with pytest.raises(OvsegError, match="tokens"):
        segment.prepare(["cat", "very " * 200 + "long"])


def test_published_demo_with_one_word(tiny):
    config, weights = tiny
    opts = ["MODEL.META_ARCHITECTURE", "OVSegDEMO", "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT", "0.0"]
    result = Segmenter.from_config(config, weights, opts)(make_image(), ["cat"])
    assert result.names == ("cat",) and set(np.unique(result.label_map)) <= {-1, 0}


def test_random_weights_are_never_used_in_silence(tiny, tmp_path):
    config, weights = tiny
    with pytest.raises(OvsegError, match=r"names no weights, and without trained weights"):
        Segmenter.from_config(config)
    backbone = {k: v for k, v in read_state_dict(weights).items() if k.startswith("backbone.")}
    save_safetensors(backbone, tmp_path / "backbone.safetensors")
    with pytest.raises(OvsegError, match=r"backbone\.safetensors holds only a part of the model .* sem_seg_head\."):
        Segmenter.from_config(config, tmp_path / "backbone.safetensors")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu9", "there is no device 'tpu9'"),
        ("cuda:99", r"device cuda:99 is not available \(\d+ CUDA devices are visible\)"),
    ],
)
def test_devices_that_are_not_there(tiny, device, message):
    with pytest.raises(OvsegError, match=message):
        Segmenter.from_config(*tiny, device=device)
