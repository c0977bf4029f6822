from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from ovseg.naming import crops as module
from ovseg.naming.crops import crop_regions, expand_boxes, mask_boxes, regroup
from ovseg.proposals.views import Masks, Views
from ovseg.vocabulary import Vocabulary
from tests.tiny_clip import (
    RESNET,
    classify,
    context_namer_of,
    donor_of,
    namer_of,
    tiny_cfg,
    views_of,
)

MEAN = torch.tensor((122.8, 116.7, 104.1))[:, None, None]
STD = torch.tensor((68.5, 66.6, 70.3))[:, None, None]


def random_masks(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        y0, y1 = sorted(torch.randint(0, height, (2,), generator=generator).tolist())
        x0, x1 = sorted(torch.randint(0, width, (2,), generator=generator).tolist())
        mask[y0 : y1 + 1, x0 : x1 + 1] = torch.rand(y1 - y0 + 1, x1 - x0 + 1, generator=generator) > 0.3
        mask[y0, x0] = True
    masks[0] = False
    masks[0, 3, 5] = True  # one pixel
    masks[1] = True  # the whole image
    return masks


@pytest.mark.parametrize("fill", [MEAN, torch.zeros_like(MEAN)], ids=["mean", "zero"])
@pytest.mark.parametrize("size", [(97, 141), (240, 320)])
@pytest.mark.parametrize("way", ["resample_each", "resample_together"])
def test_equals_resizing_each_crop(fill, size, way, monkeypatch):
    monkeypatch.setattr(module, "resample_each", getattr(module, way))
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) * 255
    masks = random_masks(12, *size)
    boxes = expand_boxes(mask_boxes(masks), 1.0, *size)
    crops, crop_masks = crop_regions(image, masks.float(), boxes, 224, MEAN, STD, fill)
    for mask, (x0, y0, x1, y1), crop, crop_mask in zip(masks, boxes.tolist(), crops, crop_masks, strict=True):
        mask = mask[y0:y1, x0:x1].float()
        region = ((image[:, y0:y1, x0:x1] * mask + (1 - mask) * fill) - MEAN) / STD
        expected = F.interpolate(region[None], (224, 224), mode="bicubic", align_corners=False)[0]
        torch.testing.assert_close(crop, expected, rtol=0, atol=1e-5)
        assert torch.equal(crop_mask, F.interpolate(mask[None, None], (224, 224), mode="nearest")[0])


def test_boxes_are_tight_with_exclusive_ends():
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 7:9] = True
    masks[1, 9, 19] = True
    assert mask_boxes(masks).tolist() == [[7, 2, 9, 5], [19, 9, 20, 10]]


def test_expanded_boxes_truncate_toward_zero_and_stay_inside():
    boxes = torch.tensor([[0.0, 0.0, 3.0, 3.0], [4.0, 4.0, 7.0, 9.0], [18.0, 8.0, 20.0, 10.0]])
    # centre 1.5 -/+ 2.25 -> (-0.75 -> 0, 3.75 -> 3); centre (5.5, 6.5) -/+ (2.25, 3.75) -> (3, 2, 7, 10)
    assert expand_boxes(boxes, 1.5, 10, 20).tolist() == [[0, 0, 3, 3], [3, 2, 7, 10], [17, 7, 20, 10]]
    assert expand_boxes(boxes, 1.0, 10, 20).tolist() == boxes.long().tolist()


def test_shrunk_boxes_keep_a_pixel():
    assert expand_boxes(torch.tensor([[5.0, 5.0, 6.0, 6.0]]), 0.1, 10, 10).tolist() == [[5, 5, 6, 6]]


@pytest.mark.parametrize("lengths", [(), (0,), (1, 0, 1), (4,), (3, 9, 2), (8,), (5, 5, 5)])
def test_rows_come_in_full_groups(lengths):
    rows = torch.arange(sum(lengths))
    groups = list(regroup(((part, -part) for part in rows.split(list(lengths))), 4))
    assert [len(group) for group, _ in groups] == [4] * (len(rows) // 4) + [len(rows) % 4] * (len(rows) % 4 > 0)
    assert torch.cat([rows[:0], *(group for group, _ in groups)]).equal(rows)
    assert all(group.equal(-negative) for group, negative in groups)


def test_pieces_wait_until_their_rows_are_needed():
    asked = []
    stream = regroup(((asked.append(i) or torch.zeros(3),) for i in range(4)), 3)
    next(stream)
    assert asked == [0]


@pytest.fixture
def cfg(tmp_path):
    return tiny_cfg(tmp_path)


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_chunks_do_not_change_the_result(cfg, chunk):
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(3, 40, 50, generator=generator) * 255
    masks = torch.rand(5, 40, 50, generator=generator)
    masks[2] = 0.1  # below the threshold
    logits, seen = classify(namer_of(cfg, REGION_CHUNK_SIZE=chunk, MASK_PROMPT_FWD=True), image, masks)
    assert seen.tolist() == [True, True, False, True, True]
    expected, _ = classify(namer_of(cfg, REGION_CHUNK_SIZE=100), image, masks)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_crops_of_several_images_are_one_stream(cfg, monkeypatch):
    namer = namer_of(cfg, REGION_CHUNK_SIZE=4)
    images = [torch.rand(3, *size) * 255 for size in ((40, 50), (30, 20), (25, 60), (10, 10))]
    masks = [torch.rand(3, *image.shape[1:]) for image in images]
    masks[1].mul_(0.1)  # no pixel above the threshold
    words = [*(("cat", "dog")[:count] for count in (1, 2, 2)), None]  # no words for the last image
    alone = [classify(namer, *asked) for asked in zip(images[:3], masks, words, strict=False)]
    sizes, encode = [], namer.encode
    monkeypatch.setattr(namer, "encode", lambda crops, masks: sizes.append(len(crops)) or encode(crops, masks))
    vocabularies = [None if asked is None else Vocabulary.from_class_names(asked) for asked in words]
    *together, nothing = namer(views_of(*images), list(map(Masks, masks)), vocabularies)
    assert sizes == [4, 2] and nothing is None
    for scores, (logits, seen) in zip(together, alone, strict=True):
        assert torch.equal(scores.seen, seen)
        torch.testing.assert_close(scores.probabilities, logits[:, :-1].softmax(-1), rtol=1e-4, atol=1e-5)
    assert [tuple(scores.probabilities.shape) for scores in together] == [(3, 1), (0, 2), (3, 2)]
    assert namer(Views([], []), [], []) == []


def test_crops_at_a_time_suit_the_device(cfg):
    assert namer_of(cfg).chunk_size == 8
    on_meta = namer_of(cfg)
    on_meta.clip_adapter.to("meta")
    assert on_meta.chunk_size == 32  # any device but the CPU
    assert namer_of(cfg, REGION_CHUNK_SIZE=5).chunk_size == 5


@pytest.mark.parametrize("kind", [namer_of, context_namer_of])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_close(cfg, kind, precision):
    image, masks = torch.rand(3, 40, 50) * 255, torch.rand(3, 40, 50)
    exact, _ = classify(kind(cfg), image, masks)
    reduced, _ = classify(kind(cfg, PRECISION=precision), image, masks)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, exact)
    torch.testing.assert_close(reduced, exact, rtol=0, atol=2.0)  # of logits in -100 .. 100


def test_prompts_replace_masked_patches_only(cfg):
    namer = namer_of(cfg, MASK_PROMPT_FWD=True)
    clip_model = namer.clip_adapter.clip_model
    torch.nn.init.normal_(clip_model.visual.mask_embedding)
    crops = torch.randn(2, 3, 32, 32)
    all_kept = namer.encode(crops, torch.ones(2, 1, 32, 32))
    torch.testing.assert_close(all_kept, clip_model.encode_image(crops))
    masks = torch.ones(2, 1, 32, 32)
    masks[:, :, :8, :8] = 0  # one patch
    assert not torch.allclose(namer.encode(crops, masks), all_kept)
    masks[:, :, 0, 0] = 0.01  # any foreground keeps the patch
    torch.testing.assert_close(namer.encode(crops, masks), all_kept)


def test_unmasked_crops_are_the_boxes_with_their_background(cfg):
    image, masks = torch.rand(3, 40, 50) * 255, torch.zeros(1, 40, 50)
    masks[0, 5:20, 10:40] = torch.eye(30)[:15]
    (crops, shown), *_ = namer_of(cfg, MASK_CROPS=False).inputs(views_of(image), 0, masks)
    box = torch.zeros_like(masks)
    box[0, 5:20, 10:25] = 1
    (expected, _), *_ = namer_of(cfg, MASK_CROPS=True).inputs(views_of(image), 0, box)
    assert torch.equal(crops, expected)
    assert shown.all()


def test_a_resnet_encodes_crops(cfg, tmp_path):
    (tmp_path / "resnet.json").write_text(json.dumps(RESNET))
    namer = namer_of(cfg, CLIP_MODEL_NAME=str(tmp_path / "resnet.json"), MASK_PROMPT_DEPTH=0)
    logits, seen = classify(namer, torch.rand(3, 40, 50) * 255, torch.rand(3, 40, 50))
    assert logits.shape == (3, 3) and seen.all()


@pytest.mark.parametrize("kind", [namer_of, context_namer_of])
def test_eight_threads_answer_as_one(cfg, tmp_path, kind):
    """Threads classify with new words, with one namer."""
    keys = {"CLIP_WEIGHTS": donor_of(cfg, tmp_path, 1)[1], "TEXT_CACHE_DIR": str(tmp_path / "cache")}
    image, masks = torch.rand(3, 40, 50) * 255, torch.rand(3, 40, 50)
    words = [[f"thing {k}", f"thing {k + 1}"] for k in range(8)]
    alone, together = kind(cfg, **keys), kind(cfg, **keys | {"TEXT_CACHE_DIR": str(tmp_path / "other")})
    expected = [classify(alone, image, masks, part)[0] for part in words]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: classify(together, image, masks, part)[0], words))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
