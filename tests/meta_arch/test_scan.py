"""SCAN beyond the recorded numbers: keys, batches, context, fusion, training and errors."""

from __future__ import annotations

import random

import pytest
import torch
from detectron2.structures import Instances

from ovseg.checkpoint import load_model
from ovseg.config import load_cfg
from ovseg.engine.solver import build_optimizer
from ovseg.errors import OvsegError
from ovseg.naming import Scores
from ovseg.proposals.views import Masks
from ovseg.segmenter import Segmenter
from tests.tiny_model import CLIP, make_tiny_scan

ADAPTER = "MODEL.CLIP_ADAPTER."
WORDS = ["cat", "dog", "sofa"]
A847 = {"dataset_name": "ade20k_full_sem_seg_val"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_scan(tmp_path_factory.mktemp("scan"))


def model_of(tiny, *opts):
    config, weights = tiny
    cfg = load_cfg(str(config), ["MODEL.WEIGHTS", str(weights), *map(str, opts)])
    return load_model(cfg, complete=True).eval()


@pytest.fixture(scope="module")
def model(tiny):
    return model_of(tiny)


def request(seed: int = 0, height: int = 70, width: int = 90, **extra) -> dict:
    pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": pixels, "class_names": WORDS} | extra


@torch.no_grad()
def named(model, *requests) -> list[list[Scores]]:
    """Return the scores by each namer, for each request."""
    views = model.views(requests)
    masks, words = model.proposer(views), [model.words_of(asked) for asked in requests]
    return list(map(list, zip(*(namer(views, masks, words) for namer in model.namers), strict=True)))


@torch.no_grad()
def scores(model, *requests) -> list[torch.Tensor]:
    return [answer["sem_seg"] for answer in model(list(requests))]


def test_keys_arrive(tiny):
    keys = {
        "MASK_THR": 0.3,
        "REPLACE_RATIO": 0.25,
        "REPLACE_SEED": 7,
        "CONTEXT_OF_FIRST_IMAGE": False,
        "CLIP_ENSEMBLE_WEIGHT": 0.2,
        "ENSEMBLE_VARIANT": "log",
    }
    model = model_of(tiny, *(item for key, value in keys.items() for item in (ADAPTER + key, value)))
    crops = model.namers[1]
    assert (crops.mask_threshold, crops.replace_ratio, crops.replace_seed) == (0.3, 0.25, 7)
    assert (model.fuse.weight, model.fuse.variant) == (0.2, "log")
    assert not crops.context_of_first and crops.replace_blocks == (1, 2)
    assert model.clip_adapter.original_depths == (1, 3)
    assert len(model_of(tiny, f"{ADAPTER}CLIP_ENSEMBLE", False).namers) == 1


def test_any_number_of_queries_and_any_size(model):
    for size in ((70, 90), (33, 200), (40, 40)):
        (map_,) = scores(model, request(height=size[0], width=size[1]))
        assert map_.shape == (3, *size) and map_.isfinite().all()
    outputs = ("label_map", "proposals", "explanations")
    with torch.no_grad():
        answer = model([request(outputs=outputs, height=50, width=60)])[0]
    assert answer["proposals"].shape == (6, 50, 60) and answer["label_map"].shape == (50, 60)
    assert answer["explanations"]["clip"].shape == answer["explanations"]["own"].shape


def test_an_image_gives_the_same_whatever_was_before(model):
    first = scores(model, request(1))[0]
    state = random.getstate()
    scores(model, request(2))
    assert torch.equal(scores(model, request(1))[0], first)
    assert random.getstate() == state


def test_a_batch_equals_its_images_when_each_has_its_own_context(tiny):
    model = model_of(tiny, f"{ADAPTER}CONTEXT_OF_FIRST_IMAGE", False)
    one, two = request(1, 64, 96), request(2, 64, 96)
    for together, alone in zip(scores(model, one, two), (*scores(model, one), *scores(model, two)), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_by_default_a_batch_has_the_context_of_its_first_image(model):
    """The original has a fixed index 0 of the context."""
    one, two = request(1, 64, 96), request(2, 64, 96)
    diagonal = Masks(torch.eye(64, 96)[None])  # a box full of background, to be shifted

    @torch.no_grad()
    def by_clip(*requests) -> list[torch.Tensor]:
        words = [model.words_of(asked) for asked in requests]
        found = model.mask_namer(model.views(requests), [diagonal] * len(requests), words)
        return [given.probabilities for given in found]

    together, alone = by_clip(one, two), [*by_clip(one), *by_clip(two)]
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[1], alone[1], rtol=0.01)


def test_draws_of_the_global_stream_go_image_by_image(tiny):
    model = model_of(tiny, f"{ADAPTER}REPLACE_SEED", -1, f"{ADAPTER}CONTEXT_OF_FIRST_IMAGE", False)
    one, two = request(1, 64, 96), request(2, 64, 96)
    random.seed(3)
    together = scores(model, one, two)
    random.seed(3)
    for actual, expected in zip(together, (*scores(model, one), *scores(model, two)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_no_valid_mask_leaves_the_networks_own_scores(tiny):
    """CLIP's factor is 1, and with CLIP alone all scores are zero; the original crashes."""
    opts = (f"{ADAPTER}MASK_THR", 1.0)
    model = model_of(tiny, *opts)
    ((own, clip),) = named(model, request())
    assert not clip.seen.any()
    torch.testing.assert_close(model.fuse([own, clip]), own.probabilities**0.3)
    assert scores(model, request())[0].any()
    assert scores(model, request(meta=A847))[0].isfinite().all()
    assert not scores(model_of(tiny, *opts, f"{ADAPTER}CLIP_ENSEMBLE_WEIGHT", 0.0), request())[0].any()


def test_without_clip_there_are_class_probabilities(tiny):
    model = model_of(tiny, f"{ADAPTER}CLIP_ENSEMBLE", False)
    ((own,),) = named(model, request(meta=A847))
    assert torch.equal(model.fuse([own], A847["dataset_name"]), own.probabilities)
    assert len(scores(model, request(meta=A847))[0]) == 3


def test_a_request_says_which_data_set_it_is_of(model):
    plain, log = scores(model, request())[0], scores(model, request(meta=A847))[0]
    assert not torch.allclose(plain, log)


def test_the_demo_adds_others_to_one_word(tiny):
    demo = model_of(tiny, "MODEL.META_ARCHITECTURE", "SCANDEMO")
    words = ["cat"]
    assert len(scores(demo, request(class_names=words))[0]) == 2 and words == ["cat"]
    assert len(scores(demo, request())[0]) == 3
    assert demo.fuse.variant == "plain"
    explicit = model_of(tiny, "MODEL.META_ARCHITECTURE", "SCANDEMO", f"{ADAPTER}ENSEMBLE_VARIANT", "log")
    assert explicit.fuse.variant == "log"
    added = model_of(tiny, "MODEL.MASK_FORMER.TEST.ADD_OTHERS", True)
    assert torch.equal(scores(added, request(class_names=words))[0], scores(demo, request(class_names=words))[0])


def test_masks_from_elsewhere_are_named_in_their_context(model):
    masks = torch.zeros(2, 70, 90, dtype=torch.bool)
    masks[0, 10:30, 10:30], masks[1, 40:60, 5:80] = torch.eye(20, dtype=torch.bool), True
    with torch.no_grad():
        names = model.name_masks(request(), masks)
        (features,) = model.mask_namer.features(model.views([request()]), [(0, masks.float())])
        logits = model.clip_adapter.similarity(features, model.clip_adapter.text_matrix(WORDS))
    torch.testing.assert_close(names, logits[:, :-1].softmax(-1))
    assert names.shape == (2, 3)
    assert not torch.allclose(model.name_masks(request() | {"image": request(1)["image"]}, masks), names)


def test_the_segmenter_runs_it(tiny):
    segmenter = Segmenter.from_config(*tiny, device="cpu")
    result = segmenter(request(5)["image"].permute(1, 2, 0).numpy(), ["cat", "dog"], explain=True)
    assert result.label_map.shape == (70, 90) and len(result.explain(top_k=1)) == 6


def training_request(seed: int) -> dict:
    asked = request(seed, 64, 64)
    instances = Instances((64, 64))
    instances.gt_classes = torch.tensor([0, 2])
    instances.gt_masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    instances.gt_masks[0, :30], instances.gt_masks[1, 40:, 20:] = True, True
    return asked | {"instances": instances}


def test_training_moves_all_but_clip(tiny):
    model = model_of(tiny).train()
    assert not model.clip_adapter.original_clip.training and not model.clip_adapter.clip_model.training
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(load_cfg(str(tiny[0]), ["SOLVER.BASE_LR", "1e-3", "SOLVER.WEIGHT_DECAY", "0.0"]), model)
    losses = model([training_request(1), training_request(2)])
    assert set(losses) == {f"loss_{kind}{at}" for kind in ("ce", "mask", "dice") for at in ("", "_0")}
    sum(losses.values()).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith(("clip_adapter.clip_model.", "clip_adapter.original_clip."))}
    assert not moved & frozen
    for part in ("learnable_weight", "LFM", "oriclip_mlp", "fusion_decoder", "lightweight_transformer", "backbone"):
        assert any(name.startswith(part) for name in moved), part
    assert "clip_adapter.non_object_embedding" in moved


def test_reduced_precision_of_clip_is_close(tiny, model):
    exact = scores(model, request())[0]
    reduced = scores(model_of(tiny, f"{ADAPTER}PRECISION", "bf16"), request())[0]
    assert not torch.equal(reduced, exact)
    torch.testing.assert_close(reduced, exact, rtol=0.2, atol=0.05 * exact.max().item())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.SCAN_DIM", 32, "MODEL.SCAN_DIM is 32, but CLIP .* has 16: set the key to 16"),
        ("MODEL.CLIP_VISION_DIM", 1024, "MODEL.CLIP_VISION_DIM is 1024, but CLIP .* has 32"),
        ("MODEL.PATCH_SIZE", 16, "MODEL.PATCH_SIZE is 16, but CLIP .* has 4"),
        ("MODEL.FREQUENCY_SIGMA", [1], r"FREQUENCY_SIGMA is \[1\]: give one positive number for each of .* \[1, 3\]"),
        ("MODEL.FREQUENCY_SIGMA", [1, 0], r"FREQUENCY_SIGMA is \[1, 0\]: give a number above 0"),
        ("MODEL.SELECT_ORI_CLIP_ID", [1, 4], "give numbers of the 3 blocks"),
        (f"{ADAPTER}ENSEMBLE_VARIANT", "harmonic", "'harmonic'; choose one of auto, plain, log"),
        (f"{ADAPTER}MASK_PROMPT_FWD", True, "crops in context have no mask prompts"),
        ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True, "PANOPTIC_ON = True has no effect"),
    ],
)
def test_wrong_keys(tiny, key, value, message):
    with pytest.raises(OvsegError, match=message):
        model_of(tiny, key, value)


def test_a_clip_whose_dimension_the_heads_cannot_share(tmp_path):
    keys = ("MODEL.SEM_SEG_HEAD.EMBEDDING_DIM", 20, "MODEL.SCAN_DIM", 20)
    with pytest.raises(OvsegError, match=r"embeddings of 20 dimensions.*multiple of 8"):
        make_tiny_scan(tmp_path, *keys, clip=CLIP | {"embed_dim": 20})
