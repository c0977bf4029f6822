"""OVSeg beyond the recorded numbers: words, requests, rendering and errors."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import MetadataCatalog
from torch.nn import functional as F

from ovseg.data.requested_words import requested_words
from ovseg.errors import OvsegError
from ovseg.meta_arch.pixel_scores import AreaWeightedSum, MaskSum, class_winner_weights, render_labels, render_scores
from ovseg.vocabulary import Vocabulary
from tests.parity.fixture import REDUCED, Parity

WEIGHT = "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT"


@pytest.fixture(scope="module")
def tiny():
    return Parity(REDUCED)


@pytest.fixture(scope="module")
def model(tiny):
    model = tiny.model()
    tiny.play_back(model, "img0/backbone/res5")
    return model


@torch.no_grad()
def scores(model, tiny, class_names, **extra):
    return model([tiny.request(0) | {"class_names": class_names} | extra])[0]["sem_seg"]


def test_a_repeated_synonym_changes_nothing(model, tiny):
    twice = scores(model, tiny, [("sky", "sky"), "striped cat"])
    torch.testing.assert_close(twice, scores(model, tiny, ["sky", "striped cat"]))


def test_words_of_a_data_set_are_stripped(model, tiny):
    MetadataCatalog.get("blanks_around_names").set(stuff_classes=["sky ", " striped cat"])
    request = tiny.request(0)
    del request["class_names"]
    with torch.no_grad():
        actual = model([request | {"meta": {"dataset_name": "blanks_around_names"}}])[0]["sem_seg"]
    assert torch.equal(actual, scores(model, tiny, ["sky", "striped cat"]))


def test_each_request_of_a_batch_has_its_own_words(tiny):
    model = tiny.model()
    tiny.play_back(model, "batch/backbone/res5")
    names = (["sky", "water"], ["striped cat", "sky", "bus, coach"])
    requests = [tiny.request(image) | {"class_names": words} for image, words in enumerate(names)]
    with torch.no_grad():
        assert [len(result["sem_seg"]) for result in model(requests)] == [2, 3]


def test_the_callers_list_stays_as_it_is(tiny):
    model = tiny.model("MODEL.META_ARCHITECTURE", "OVSegDEMO", WEIGHT, 0.0)
    tiny.play_back(model, "img0/backbone/res5")
    words = ["cat"]
    assert len(scores(model, tiny, words)) == 2
    assert words == ["cat"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "give the words to look for"),
        ({"class_names": []}, "class_names is empty"),
        ({"class_names": "cat"}, "must be a list of words"),
        ({"class_names": ["cat", " "]}, "blank word"),
        ({"class_names": ["cat", ()]}, "blank word"),
        ({"meta": {"dataset_name": "nobody_registered_this"}}, "has no stuff_classes"),
    ],
)
def test_bad_words(request_, message):
    with pytest.raises(OvsegError, match=message):
        requested_words(request_)


def test_training_batches_share_their_words(tiny):
    model = tiny.model().train()
    requests = [tiny.request(0) | {"class_names": words} for words in (["sky"], ["water"])]
    with pytest.raises(OvsegError, match="must share their words"):
        model(requests)


def test_no_object_column_before_or_after_the_softmax(tiny):
    opts = ("MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", False)
    after = tiny.segment(tiny.model(*opts), 0)
    before = tiny.segment(tiny.model(*opts, "MODEL.CLIP_ADAPTER.DROP_NO_OBJECT_BEFORE_SOFTMAX", True), 0)
    assert before.sum() > after.sum()  # nothing goes to "no object"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.MASK_FORMER.TEST.PAINTING", "fresco", "PAINTING is 'fresco'; choose one of mask_sum, class_winner"),
        ("MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE", 0, "CLASS_CHUNK_SIZE is 0: give a whole number from 1"),
        ("MODEL.SEM_SEG_HEAD.EMBEDDING_DIM", 512, "EMBEDDING_DIM is 512, but CLIP .* has embeddings of 32"),
        ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True, "PANOPTIC_ON = True has no effect"),
    ],
)
def test_wrong_keys(tiny, key, value, message):
    with pytest.raises(OvsegError, match=message):
        tiny.model(key, value)


SIZES = [(61, 77), (30, 40), (20, 33), (31, 39)]  # of results, from maps of 30 x 40


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [5, 150])
def test_scores_are_the_resized_sums(size, classes):
    """The order of resizing and summing depends on the sizes."""
    torch.manual_seed(0)
    weights, maps = torch.rand(20, classes).softmax(1), torch.rand(20, 30, 40)
    sums = (weights.T @ maps.flatten(1)).view(classes, 30, 40)
    expected = F.interpolate(sums[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(render_scores(weights, maps, size, 64), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (3, 2)])
def test_rendering_nothing_is_zero_everywhere(size):
    labels, best = render_labels(torch.zeros(0, 5), torch.zeros(0, 4, 4), size, 2)
    assert not labels.any()
    assert not best.any()


def test_winners_keep_their_whole_row():
    probabilities = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.2, 0.3]])
    assert class_winner_weights(probabilities, False).tolist() == [
        pytest.approx([0.6, 0.4]),
        pytest.approx([0.9, 0.1]),
        [0, 0],
    ]
    assert class_winner_weights(probabilities, True)[0].tolist() == [0, 0]


def test_small_regions_count_more_among_few_words():
    masks = torch.zeros(2, 10, 10)
    masks[0], masks[1, :2, :2] = 1, 1  # 25 times the area
    scores = torch.tensor([[0.6, 0.3], [0.1, 0.2]])
    words = Vocabulary.from_class_names(["a", "b"])
    plain = MaskSum()(scores, masks, words, (10, 10), ("label_map",))["label_map"]
    weighted = AreaWeightedSum()(scores, masks, words, (10, 10), ("label_map", "sem_seg"))
    assert not plain.any()
    assert weighted["label_map"].sum() == 4 and weighted["label_map"][:2, :2].all()
    assert torch.allclose(weighted["sem_seg"][:, 0, 0], torch.tensor([0.6 + 0.1 * 5, 0.3 + 0.2 * 5]) / 6)
    many = torch.cat([scores, torch.zeros(2, 98)], 1)
    words = Vocabulary.from_class_names([f"word {k}" for k in range(100)])
    few = AreaWeightedSum()(many, masks, words, (10, 10), ("sem_seg",))["sem_seg"]
    assert torch.allclose(few[:2, 0, 0], torch.tensor([0.6 + 0.1 * 25**0.05, 0.3 + 0.2 * 25**0.05]) / (1 + 25**0.05))
