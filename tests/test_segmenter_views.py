"""Sliding windows and test-time augmentation in Python and demo.py: the evaluator's scores, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import demo
from ovseg import Segmentation, Segmenter
from ovseg.config import get_cfg, load_cfg
from ovseg.data.mapper import ResizeShortestEdge, SemSegTestMapper
from ovseg.errors import OvsegError
from ovseg.evaluation.tta import SlidingWindow, augmented_model
from ovseg.naming.windows import windows
from ovseg.result import of_model
from ovseg.vocabulary import Vocabulary
from tests.tiny_model import make_tiny_model

WORDS = ["cat", ("sofa", "couch"), "dog"]
SLIDING = ["TEST.SLIDING_WINDOW", "True", "TEST.SLIDING_TILE_SIZE", "48", "TEST.SLIDING_OVERLAP", "0.25"]
AUGMENTED = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48,)", "TEST.AUG.MAX_SIZE", "128"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(tiny):
    return Segmenter.from_config(*tiny)


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(file)
    return file


def evaluators_answer(segment, cfg, file):
    """What --eval-only computes for an image: the test mapper, and the model with its views."""
    mapper = SemSegTestMapper(
        dataset_name="none",
        vocabulary=Vocabulary.of(WORDS),
        outputs=["label_map"],
        resize=ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        image_format=cfg.INPUT.FORMAT,
    )
    with torch.no_grad():
        return augmented_model(cfg, segment.model)([mapper({"file_name": str(file)})])[0]


@pytest.mark.parametrize(
    "opts",
    [SLIDING, AUGMENTED, SLIDING + AUGMENTED, ["INPUT.FORMAT", "BGR"]],
    ids=["window", "augmentation", "both", "channels"],
)
def test_scores_are_the_evaluators(tiny, plain, image_file, opts):
    segment = Segmenter.from_config(*tiny, opts)
    result = segment(image_file, WORDS)
    answer = evaluators_answer(segment, load_cfg(str(tiny[0]), opts), image_file)
    expected = Segmentation.from_maps(
        answer["label_map"].numpy(), answer["score_map"].numpy(), result.names, result.image
    )
    assert np.array_equal(result.label_map, expected.label_map)
    assert np.array_equal(result.scores, expected.scores) and result.scores.any()
    assert not np.array_equal(result.scores, plain(image_file, WORDS).scores)


def test_proposals_are_those_of_the_whole_image_and_views_are_not_explained(tiny, plain, image_file):
    segment = Segmenter.from_config(*tiny, SLIDING)
    assert torch.equal(segment.propose(image_file), plain.propose(image_file))
    with pytest.raises(
        OvsegError, match=r"TEST\.SLIDING_WINDOW, TEST\.AUG\.ENABLED or .* neither explained nor kept: set them to"
    ):
        segment(image_file, WORDS, explain=True)
    with pytest.raises(OvsegError, match=r"TEST\.SLIDING_WINDOW, .* give granularity to each call"):
        segment.adjustable(image_file, WORDS)
    coarse, precise = (segment(image_file, WORDS, granularity=value) for value in (0, 1))
    assert not np.array_equal(coarse.scores, precise.scores)


def test_many_words_on_a_large_image_need_bounded_memory(tiny, image_file, monkeypatch):
    held = []

    class Noting(torch.nn.Module):
        def forward(self, batch):
            (sample,) = batch
            held.append(len(sample["class_names"]) * sample["height"] * sample["width"])
            return [{"sem_seg": torch.ones(len(sample["class_names"]), sample["height"], sample["width"])}]

    monkeypatch.setattr(of_model, "LARGEST_MAPS", 20_000)
    window = SlidingWindow(Noting(), 64, 0.5, largest_sum=5000)
    segment = Segmenter(Noting(), min_size=0, max_size=0, many_views=window)
    result = segment(np.zeros((300, 400, 3), np.uint8), [f"word {k}" for k in range(10)])
    assert result.label_map.shape == (300, 400) and np.isclose(result.scores[0], 1)
    tiles = len(list(windows((300, 400), (64, 64), (32, 32))))
    assert len(held) == tiles and max(held) < 5000 * 64 * 64 / (300 * 400) * 1.5


def test_very_long_images_in_many_views(plain):
    cfg = get_cfg()
    cfg.TEST.SLIDING_WINDOW, cfg.TEST.SLIDING_TILE_SIZE, cfg.TEST.SLIDING_OVERLAP = True, 240, 0.0
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = True, (40,), 250, False
    segment = Segmenter(plain.model, min_size=40, max_size=250, many_views=augmented_model(cfg, plain.model))
    for size in ((1, 1), (3, 2000), (2000, 3), (1, 5000)):
        assert segment(np.zeros((*size, 3), np.uint8), WORDS).label_map.shape == size


def test_demo_follows_the_keys(tiny, image_file, tmp_path, capfd):
    command = ["--config-file", str(tiny[0]), "--class-names", "cat", "dog", "--input", str(image_file)]
    end = ["--opts", "MODEL.WEIGHTS", str(tiny[1])]
    for name, opts in {"plain": [], "window": SLIDING}.items():
        assert demo.main([*command, "--output", str(tmp_path / f"{name}.png"), *end, *opts]) == 0
    assert (tmp_path / "plain.json").read_text() != (tmp_path / "window.json").read_text()
    with pytest.raises(SystemExit) as stop:
        demo.main([*command, "--explain", *end, *SLIDING])
    assert stop.value.code == 2 and "neither explained nor kept" in capfd.readouterr().err
