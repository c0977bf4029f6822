"""Swin's fused attention against the formula (arXiv 2103.14030, equation 4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ovseg.proposals.swin import WindowAttention, shifted_window_mask

WINDOW, DIM, HEADS = 4, 8, 2
TOKENS = WINDOW * WINDOW


def plain(attention: WindowAttention, x, mask):
    """Compute the attention with all its weights, for each window and head."""
    qkv = attention.qkv(x).view(len(x), TOKENS, 3, HEADS, DIM // HEADS)
    bias = attention.relative_position_bias_table[attention.relative_position_index]  # (TOKENS, TOKENS, HEADS)
    results = []
    for number, window in enumerate(qkv):
        per_head = []
        for head in range(HEADS):
            query, key, value = window[:, :, head].unbind(1)
            logits = attention.scale * query @ key.T + bias[..., head]
            if mask is not None:
                logits = logits + mask[number % len(mask)]
            per_head.append(logits.softmax(-1) @ value)
        results.append(torch.cat(per_head, -1))
    return attention.proj(torch.stack(results))


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("shifted", [False, True])
def test_equals_the_formula(shifted, scale):
    torch.manual_seed(0)
    attention = WindowAttention(DIM, WINDOW, HEADS, qk_scale=scale, attn_drop=0.5).eval()
    nn.init.normal_(attention.relative_position_bias_table)
    mask = shifted_window_mask(7, 10, WINDOW, torch.device("cpu")) if shifted else None  # 2 x 3 windows
    x = torch.randn(2 * 6, TOKENS, DIM, requires_grad=True)  # of two images
    expected = plain(attention, x, mask)
    actual = attention(x, mask)
    torch.testing.assert_close(actual, expected)
    wanted = [x, *attention.parameters()]
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, wanted, direction), torch.autograd.grad(expected, wanted, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(attention.train()(x, mask), expected)  # dropout
