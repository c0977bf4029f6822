from __future__ import annotations

import random

import pytest
import torch
from open_clip.transformer import VisionTransformer
from ovseg.clip.contextual_shift import Context, draw, draw_patches, drawn_patches, encode_shifted, shifted_blocks
from ovseg.clip.whole_image import look_at_whole, squash

from ovseg.clip.vit import embed_patches, encode_patches
from ovseg.errors import OvsegError

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
    """Layer by layer, then region by region, from Python's global stream."""
    counts = [7, 0, 16, 3]
    random.seed(5)
    expected = [[random.sample(list(range(n)), int(0.4 * n)) for n in counts] for _ in range(3)]
    random.seed(5)
    assert draw(counts, 0.4, 3, Context(torch.zeros(1)).generator()) == expected
    assert [len(numbers) for numbers in expected[0]] == [2, 0, 6, 1]


def test_a_seed_starts_anew_and_leaves_the_global_stream_alone():
    context, state = Context(torch.zeros(1), "0 abc"), random.getstate()
    first, second = (draw([50], 0.5, 2, context.generator()) for _ in range(2))
    assert first == second
    assert first != draw([50], 0.5, 2, Context(torch.zeros(1), "0 abd").generator())
    assert random.getstate() == state


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
    assert crops.grad.abs().sum((1, 2, 3)).min() > 0  # by the class token, even where all patches are gone
    visual.zero_grad()


def test_blocks_that_the_tower_has(visual):
    assert shifted_blocks([9, 3, 1, 3, 4], visual) == (1, 3, 4)
    assert shifted_blocks([], visual) == ()
    with pytest.raises(OvsegError, match="REPLACE_LAYER has 0: blocks are numbered from 1"):
        shifted_blocks([0, 1], visual)


def test_whole_images_keep_what_was_asked_for_in_that_order(visual, crops):
    seen = look_at_whole(visual, crops, (3, 0, 4))
    reference = visual.forward_intermediates(crops, output_fmt="NLC", output_extra_tokens=True)
    assert seen.patches.shape == (3, 3, 16, 4, 4)
    for place, depth in ((0, 3), (2, 4)):
        torch.testing.assert_close(
            seen.patches[:, place].flatten(2).transpose(1, 2), reference["image_intermediates"][depth - 1]
        )
        torch.testing.assert_close(seen.class_tokens[depth], reference["image_intermediates_prefix"][depth - 1][:, 0])
    torch.testing.assert_close(seen.features, reference["image_features"])
    torch.testing.assert_close(seen.patches[:, 1].flatten(2).transpose(1, 2), visual._embeds(crops)[:, 1:])
    assert not seen.features.requires_grad


def test_squashing_takes_the_padding_along():
    mean, std = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)
    images = [torch.full((3, 20, 40), 150.0), torch.full((3, 64, 33), 50.0)]
    squashed = squash(images, 32, 8, mean, std)  # padded to 64 x 64
    assert squashed.shape == (2, 3, 8, 8)
    assert (squashed[0, :, :3, :5] == 1).all() and squashed[0].sum() == 3 * 15  # rows 0, 8, 16; columns 0, ..., 32
    assert (squashed[1, :, :, :5] == -1).all() and squashed[1].sum() == -3 * 40


def test_gradient_checkpointing_changes_nothing(visual, crops):
    patches = embed_patches(visual, crops)
    plain = encode_patches(visual, patches)
    visual.set_grad_checkpointing(True)
    torch.testing.assert_close(encode_patches(visual, patches), plain)
    visual.set_grad_checkpointing(False)
