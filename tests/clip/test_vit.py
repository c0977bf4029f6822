"""The image tower that works out only what is asked for, against open_clip's own forward pass."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from ovseg.clip.mask_prompt import add_mask_prompts, encode_masked_image
from torch import nn

from ovseg.clip.vit import Replacement, embed_patches, encode_patches

PATCHES, WIDTH, BLOCKS = 16, 16, 4


@pytest.fixture(params=[QuickGELU, nn.GELU])
def visual(request):
    torch.manual_seed(0)
    tower = VisionTransformer(32, 8, WIDTH, BLOCKS, 2, 4.0, output_dim=8, act_layer=request.param).eval()
    for parameter in tower.parameters():  # no bias is zero, no layer does nothing
        nn.init.normal_(parameter, std=0.3)
    return tower


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def open_clip_forward(visual, x, replaced):
    """All tokens of all blocks, by open_clip's modules; ``x``: tokens before the first block."""
    for number, block in enumerate(visual.transformer.resblocks, 1):
        x = block(x)
        if number in replaced:
            where, by = replaced[number].where[..., None], replaced[number].by
            x = torch.cat((x[:, :1], torch.where(where, by, x[:, 1:])), 1)
    return visual.ln_post(x)[:, 0] @ visual.proj


def replacements(seed=2):
    random = torch.Generator().manual_seed(seed)
    whose = {1: (1, PATCHES), 2: (1, 1), BLOCKS: (3, 1)}  # prompts, one context for all, each one's own
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
def test_every_block_can_be_observed(visual, images):
    seen = []
    encode_patches(visual, embed_patches(visual, images), observe=lambda tokens, block: seen.append(tokens))
    x = visual._embeds(images)
    for tokens, block in zip(seen, (nn.Identity(), *visual.transformer.resblocks), strict=True):
        x = block(x)
        torch.testing.assert_close(tokens, x)


@torch.no_grad()
def test_a_replaced_patch_has_no_say(visual, images):
    """Nor is it worked out, on a CPU."""
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
