"""The copy of an image tower in a lower precision against the tower itself under autocast."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn
from torch.nn import functional as F

from ovseg.clip.low_precision import LowPrecisionCopy
from ovseg.clip.vit import add_mask_prompts, encode_masked_image


@pytest.fixture(params=[(QuickGELU, None), (nn.GELU, 0.5)], ids=["quick", "exact"])
def visual(request: pytest.FixtureRequest) -> VisionTransformer:
    torch.manual_seed(0)
    activation, scale = request.param
    tower = VisionTransformer(32, 8, 64, 3, 2, 4.0, ls_init_value=scale, output_dim=32, act_layer=activation).eval()
    for parameter in tower.parameters():  # no zeros and identities
        nn.init.normal_(parameter, std=0.1)
    add_mask_prompts(tower, 2)
    return tower.requires_grad_(False)


def encode(tower: VisionTransformer, dtype: torch.dtype | None = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    crops, masks = torch.randn(4, 3, 32, 32, generator=generator), torch.zeros(4, 1, 32, 32)
    masks[:, :, 8:24, :20] = 1
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        return encode_masked_image(tower, crops, masks).float()


def test_the_copy_is_as_near_to_float32_as_autocast(visual: VisionTransformer) -> None:
    low = LowPrecisionCopy().of(visual, torch.bfloat16)
    exact, cast, copied = encode(visual, None), encode(visual), encode(low)
    errors = [1 - F.cosine_similarity(features, exact).min().item() for features in (cast, copied)]
    assert 0 < errors[1] < max(2 * errors[0], 1e-4), errors
    assert errors[1] < 1e-3


def test_only_matrices_are_copied(visual: VisionTransformer) -> None:
    low = LowPrecisionCopy().of(visual, torch.bfloat16)
    block, own = low.transformer.resblocks[0], visual.transformer.resblocks[0]
    assert low.conv1.weight.dtype == block.mlp.c_proj.weight.dtype == block.attn.in_proj_weight.dtype == torch.bfloat16
    assert low.positional_embedding is visual.positional_embedding and block.ln_1.weight is own.ln_1.weight
    assert own.mlp.c_proj.weight.dtype == visual.conv1.weight.dtype == torch.float32


def test_the_copy_follows_the_weights(visual: VisionTransformer) -> None:
    copies = LowPrecisionCopy()
    first = copies.of(visual, torch.bfloat16)
    assert copies.of(visual, torch.bfloat16) is first
    with torch.no_grad():
        visual.transformer.resblocks[1].mlp.c_fc.weight.mul_(2)
    second = copies.of(visual, torch.bfloat16)
    assert second is not first
    torch.testing.assert_close(encode(second), encode(visual), rtol=0.1, atol=0.05)
    assert copies.of(visual, torch.float16).conv1.weight.dtype == torch.float16


def test_fused_optimisers_leave_no_trace_but_a_dropped_copy_is_made_again(visual: VisionTransformer) -> None:
    copies = LowPrecisionCopy()
    first = copies.of(visual, torch.bfloat16)
    weight = visual.transformer.resblocks[1].mlp.c_fc.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1.0, fused=True).step()
    copies.drop()
    assert not torch.equal(
        copies.of(visual, torch.bfloat16).transformer.resblocks[1].mlp.c_fc.weight,
        first.transformer.resblocks[1].mlp.c_fc.weight,
    )


def test_a_tower_of_inference_mode() -> None:
    with torch.inference_mode():
        tower = VisionTransformer(32, 8, 64, 1, 2, 4.0, output_dim=32).eval()
        assert LowPrecisionCopy().of(tower, torch.bfloat16).conv1.weight.dtype == torch.bfloat16


def test_copies_and_pickles_make_their_own(visual: VisionTransformer) -> None:
    copies = LowPrecisionCopy()
    copies.of(visual, torch.bfloat16)
    assert copy.deepcopy(copies)._made is None and len(pickle.dumps(copies)) < 200


def test_other_towers_are_not_copied() -> None:
    tower = nn.Linear(2, 2)
    assert LowPrecisionCopy().of(tower, torch.bfloat16) is tower
