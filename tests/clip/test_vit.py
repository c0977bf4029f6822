"""The image tower that computes only required tokens, against open_clip's forward pass.

The forward of open_clip's blocks is written anew in ovseg/clip/vit.py. The suite tests it on the version of open_clip
that is installed, the newest; on the oldest that pyproject.toml allows it is tested by::

    uv pip install --target /tmp/oc30 --no-deps open_clip_torch==3.0.0
    PYTHONPATH=/tmp/oc30:. python -m pytest -q tests/clip/test_vit.py
"""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

from ovseg.clip.vit import (
    Replacement,
    add_mask_prompts,
    embed_patches,
    encode_masked_image,
    encode_patches,
    look_at_whole,
    squash,
)

PATCHES, WIDTH, BLOCKS = 16, 16, 4


@pytest.fixture(params=[(QuickGELU, None), (nn.GELU, None), (nn.GELU, 0.5)], ids=["quick", "exact", "layer scale"])
def visual(request):
    torch.manual_seed(0)
    activation, scale = request.param
    tower = VisionTransformer(
        32, 8, WIDTH, BLOCKS, 2, 4.0, ls_init_value=scale, output_dim=8, act_layer=activation
    ).eval()
    for parameter in tower.parameters():  # no zeros and identities
        nn.init.normal_(parameter, std=0.3)
    return tower


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def open_clip_forward(visual, x, replaced):
    """Return all tokens of all blocks by open_clip's modules; ``x``: tokens before the first block."""
    for number, block in enumerate(visual.transformer.resblocks, 1):
        x = block(x)
        if number in replaced:
            where, by = replaced[number].where[..., None], replaced[number].by
            x = torch.cat((x[:, :1], torch.where(where, by, x[:, 1:])), 1)
    return visual.ln_post(x)[:, 0] @ visual.proj


def replacements(seed=2):
    random = torch.Generator().manual_seed(seed)
    whose = {1: (1, PATCHES), 2: (1, 1), BLOCKS: (3, 1)}  # prompts, one context for all, one context each
    return {
        block: Replacement(torch.rand(3, PATCHES, generator=random) < 0.5, torch.randn(*shape, WIDTH, generator=random))
        for block, shape in whose.items()
    }


@pytest.mark.parametrize("replaced", [{}, replacements()])
def test_features_are_open_clips(visual, images, replaced):
    with torch.no_grad():
        expected = open_clip_forward(visual, visual._embeds(images), replaced)
        torch.testing.assert_close(encode_patches(visual, embed_patches(visual, images), replaced), expected)
        if not replaced:
            torch.testing.assert_close(expected, visual(images))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_open_clips(visual, images, checkpointing):
    replaced = replacements()
    open_clip_forward(visual, visual._embeds(images), replaced).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in visual.named_parameters()}
    visual.zero_grad()
    visual.set_grad_checkpointing(checkpointing)
    encode_patches(visual, embed_patches(visual, images), replaced).square().sum().backward()
    for name, parameter in visual.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max())


@torch.no_grad()
@pytest.mark.parametrize("replaced", [{}, replacements()])
def test_each_block_is_open_clips(visual, images, replaced):
    """Compare all tokens after each block, and the class token after the last block without an observer."""
    seen = []
    features = encode_patches(
        visual, embed_patches(visual, images), replaced, observe=lambda tokens, block: seen.append(tokens)
    )
    x = visual._embeds(images)
    for number, (tokens, block) in enumerate(zip(seen, (nn.Identity(), *visual.transformer.resblocks), strict=True)):
        x = block(x)
        if number in replaced:
            where, by = replaced[number].where[..., None], replaced[number].by
            x = torch.cat((x[:, :1], torch.where(where, by, x[:, 1:])), 1)
        torch.testing.assert_close(tokens, x)
    torch.testing.assert_close(features, visual.ln_post(x)[:, 0] @ visual.proj)
    torch.testing.assert_close(encode_patches(visual, embed_patches(visual, images), replaced), features)


@torch.no_grad()
def test_a_replaced_patch_has_no_say(visual, images):
    """Replaced patches have no effect, and on a CPU they are not computed."""
    replaced = {1: Replacement(torch.zeros(3, PATCHES, dtype=torch.bool), torch.ones(1, 1, WIDTH))}
    replaced[1].where[:, 5] = True
    block = visual.transformer.resblocks[0]
    tokens_of = []
    block.ln_2.register_forward_hook(lambda module, inputs, output: tokens_of.append(output.shape))
    encode_patches(visual, embed_patches(visual, images), replaced)
    assert tokens_of == [(3 * PATCHES, WIDTH)]  # of PATCHES + 1 tokens each


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 3])
def test_masked_patches_are_prompts(visual, images, depth):
    add_mask_prompts(visual, depth)
    prompts = nn.init.normal_(visual.mask_embedding)
    masks = torch.zeros(3, 1, 32, 32)
    masks[0, 0, 5:20, 9:11] = 1  # of the third image nothing, of the second everything
    masks[1] = 0.5
    masked = ~masks.unflatten(2, (4, 8)).unflatten(4, (4, 8)).amax((1, 3, 5)).bool().flatten(1)
    patches = torch.where(masked[..., None], prompts[0], visual.conv1(images).flatten(2).transpose(1, 2))
    tokens = torch.cat((visual.class_embedding.expand(3, 1, -1), patches), 1) + visual.positional_embedding
    later = {level: Replacement(masked, prompts[level]) for level in range(1, depth)}
    expected = open_clip_forward(visual, visual.ln_pre(tokens), later)
    torch.testing.assert_close(encode_masked_image(visual, images, masks), expected)


def test_whole_images_keep_what_was_asked_for_in_that_order(visual, images):
    seen = look_at_whole(visual, images, (3, 0, 4))
    reference = visual.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
    assert seen.patches.shape == (3, 3, WIDTH, 4, 4)
    for place, depth in ((0, 3), (2, 4)):
        torch.testing.assert_close(
            seen.patches[:, place].flatten(2).transpose(1, 2), reference["image_intermediates"][depth - 1]
        )
        torch.testing.assert_close(seen.class_tokens[depth], reference["image_intermediates_prefix"][depth - 1][:, 0])
    torch.testing.assert_close(seen.features, reference["image_features"])
    torch.testing.assert_close(seen.patches[:, 1].flatten(2).transpose(1, 2), visual._embeds(images)[:, 1:])
    assert not seen.features.requires_grad


def test_squashing_takes_the_padding_along():
    mean, std = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)
    images = [torch.full((3, 20, 40), 150.0), torch.full((3, 64, 33), 50.0)]
    squashed = squash(images, 32, 8, mean, std)  # padded to 64 x 64
    assert squashed.shape == (2, 3, 8, 8)
    assert (squashed[0, :, :3, :5] == 1).all() and squashed[0].sum() == 3 * 15  # rows 0, 8, 16; columns 0, ..., 32
    assert (squashed[1, :, :, :5] == -1).all() and squashed[1].sum() == -3 * 40
