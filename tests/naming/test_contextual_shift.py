from __future__ import annotations

import random

import pytest
import torch
from open_clip.transformer import VisionTransformer

from ovseg.errors import OvsegError, argument_names
from ovseg.naming.contextual_shift import (
    draw,
    draw_patches,
    drawn_patches,
    encode_shifted,
    shifted_blocks,
    whole_images,
)
from ovseg.proposals.views import Masks
from ovseg.vocabulary import Vocabulary
from tests.tiny_clip import classify, context_namer_of, namer_of, tiny_cfg, views_of, with_keys

BLOCKS, PATCHES = 4, 16


@pytest.fixture(scope="module")
def visual():
    torch.manual_seed(0)
    return VisionTransformer(32, 8, width=16, layers=BLOCKS, heads=2, mlp_ratio=2.0, output_dim=8).eval()


@pytest.fixture
def crops():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def context():
    return torch.randn(BLOCKS + 1, 1, 16, generator=torch.Generator().manual_seed(2))


def test_draws_come_as_in_the_original():
    """Draws are layer by layer, then region by region, from Python's global stream."""
    counts = [7, 0, 16, 3]
    random.seed(5)
    expected = [[random.sample(list(range(n)), int(0.4 * n)) for n in counts] for _ in range(3)]
    random.seed(5)
    assert draw(counts, 0.4, 3, random) == expected
    assert [len(numbers) for numbers in expected[0]] == [2, 0, 6, 1]


def test_numbers_count_the_background_patches_row_by_row():
    foreground = torch.rand(5, PATCHES, generator=torch.Generator().manual_seed(0)) > 0.5
    foreground[0], foreground[1] = True, False
    picks = draw((~foreground).sum(1).tolist(), 0.6, 2, random.Random(1))
    drawn = drawn_patches(foreground, picks)
    for layer, of_layer in enumerate(picks):
        for region, numbers in enumerate(of_layer):
            background = [patch for patch in range(PATCHES) if not foreground[region, patch]]
            assert set(drawn[layer, region].nonzero()[:, 0].tolist()) == {background[n] for n in numbers}
    assert drawn.sum((0, 2))[0] == 0


def test_a_patch_is_background_only_if_all_its_pixels_are(visual):
    masks = torch.zeros(1, 1, 32, 32)
    masks[0, 0, 9, 3] = 1  # one pixel of the second row's first patch
    drawn = draw_patches(visual, masks, 1.0, 1, random.Random(0))
    assert drawn[0, 0].nonzero()[:, 0].tolist() == [patch for patch in range(PATCHES) if patch != 4]


def test_drawn_tokens_become_the_contexts(visual, crops, context):
    blocks = (1, 3)
    drawn = torch.rand(2, 3, PATCHES, generator=torch.Generator().manual_seed(3)) > 0.6
    x = visual._embeds(crops)
    for number, block in enumerate(visual.transformer.resblocks, 1):
        x = block(x)
        if number in blocks:
            for region, patch in drawn[blocks.index(number)].nonzero().tolist():
                x[region, 1 + patch] = context[number, 0]
    expected = visual.ln_post(x)[:, 0] @ visual.proj
    torch.testing.assert_close(encode_shifted(visual, crops, drawn, context, blocks), expected)


def test_nothing_drawn_is_plain_clip(visual, crops, context):
    shifted = encode_shifted(visual, crops, torch.zeros(2, 3, PATCHES, dtype=torch.bool), context, (1, 3))
    torch.testing.assert_close(shifted, visual(crops))


def test_each_crop_may_have_its_own_context(visual, crops):
    contexts = torch.randn(BLOCKS + 1, 3, 16)
    drawn = torch.rand(1, 3, PATCHES) > 0.5
    together = encode_shifted(visual, crops, drawn, contexts, (2,))
    for i in range(3):
        one = encode_shifted(visual, crops[i : i + 1], drawn[:, i : i + 1], contexts[:, i : i + 1], (2,))
        torch.testing.assert_close(together[i], one[0])


def test_the_tower_trains_through_what_stays(visual, crops, context):
    drawn = torch.zeros(1, 3, PATCHES, dtype=torch.bool)
    drawn[0, 0] = True
    crops.requires_grad_(True)
    encode_shifted(visual, crops, drawn, context, (1,)).sum().backward()
    assert crops.grad.abs().sum((1, 2, 3)).min() > 0  # by the class token, also if all patches are replaced
    visual.zero_grad()


def test_blocks_that_the_tower_has(visual):
    assert shifted_blocks([9, 3, 1, 3, 4], visual) == (1, 3, 4)
    assert shifted_blocks([], visual) == ()
    with (
        pytest.raises(OvsegError, match="REPLACE_LAYER has 0: blocks are numbered from 1"),
        argument_names({"replace_layers": "REPLACE_LAYER"}),
    ):
        shifted_blocks([0, 1], visual)


@pytest.fixture
def cfg(tmp_path):
    return tiny_cfg(tmp_path)


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(3)
    image = (torch.rand(3, 40, 50, generator=generator) * 255).to(torch.uint8)
    masks = torch.zeros(5, 40, 50)
    for mask, (y, x) in zip(masks, ((0, 0), (5, 9), (20, 3), (11, 30), (30, 40)), strict=True):
        mask[y : y + 10, x : x + 3] = 0.9  # a bar and a foot, so that its crop has background
        mask[y + 9, x : x + 10] = 0.8
    masks[2] *= 0.1  # below the threshold
    return image, masks


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("seed", [0, -1])
def test_chunks_change_neither_draws_nor_result(cfg, scene, chunk, seed):
    random.seed(4)
    logits, seen = classify(context_namer_of(cfg, REPLACE_SEED=seed, REGION_CHUNK_SIZE=chunk), *scene)
    random.seed(4)
    expected, _ = classify(context_namer_of(cfg, REPLACE_SEED=seed, REGION_CHUNK_SIZE=100), *scene)
    assert seen.tolist() == [True, True, False, True, True]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_context_matters_and_draws_do(cfg, scene):
    plain, _ = classify(namer_of(cfg), *scene)
    shifted, _ = classify(context_namer_of(cfg), *scene)
    assert not torch.allclose(plain, shifted, atol=1e-2)
    assert not torch.allclose(classify(context_namer_of(cfg, REPLACE_SEED=1), *scene)[0], shifted, atol=1e-2)
    torch.testing.assert_close(classify(context_namer_of(cfg, REPLACE_RATIO=0.0), *scene)[0], plain)


def test_an_image_is_seeded_by_itself(cfg, scene):
    """Draws depend neither on previous images nor on the type of the pixels."""
    image, masks = scene
    namer = context_namer_of(cfg)
    first = classify(namer, image, masks)[0]
    state = random.getstate()
    classify(namer, image.flip(2), masks)
    assert torch.equal(classify(namer, image.double(), masks)[0], first)
    assert random.getstate() == state
    draws = [namer.generator(pixels).random() for pixels in (image, image, image.flip(2))]
    assert draws[0] == draws[1] != draws[2]


def test_the_global_stream_goes_on(cfg, scene):
    namer = context_namer_of(cfg, REPLACE_SEED=-1)
    random.seed(1)
    first, second = (classify(namer, *scene)[0] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)
    random.seed(1)
    assert torch.equal(classify(namer, *scene)[0], first)


def test_no_valid_mask(cfg, scene):
    (scores,) = context_namer_of(cfg)(
        views_of(scene[0]), [Masks(torch.zeros(4, 40, 50))], [Vocabulary.from_class_names(["cat", "dog"])]
    )
    assert scores.probabilities.shape == (0, 2) and not scores.seen.any()


@pytest.mark.parametrize("first", [True, False])
def test_whose_context_a_batch_has(cfg, scene, first):
    image, masks = scene
    namer = context_namer_of(cfg, CONTEXT_OF_FIRST_IMAGE=first)
    *_, (_, _, tokens) = namer.inputs(views_of(image, image.flip(2)), 1, masks)
    alone = whole_images(views_of(image if first else image.flip(2)), namer.clip_adapter)
    torch.testing.assert_close(tokens[0], alone.class_tokens[:, 0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"REPLACE_LAYER": [0]}, r"MODEL\.CLIP_ADAPTER\.REPLACE_LAYER has 0"),
        ({"MASK_PROMPT_FWD": True}, "crops in context have no mask prompts: set it to False"),
    ],
)
def test_wrong_keys(cfg, keys, message):
    with pytest.raises(OvsegError, match=message):
        context_namer_of(with_keys(cfg, keys))
