from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ovseg.meta_arch.calibration import LFM, FusionDecoder, LightweightTransformer, LoneEncoderLayer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_frequency_filter_by_numpy():
    """Compare the filter alone, with identities as convolutions, for each level (specification, section 7.2)."""
    channels, grid, sigmas = 3, (6, 6), (4, 1.5)
    lfm = LFM(channels, grid, sigmas)
    for conv, shift in ((lfm.conv1, 1000.0), (lfm.conv2, -1000.0)):  # the shift makes all numbers positive for the ReLU
        nn.init.eye_(conv.weight.data.flatten(1))
        nn.init.constant_(conv.bias, shift)
    x = torch.randn(2, len(sigmas), channels, *grid)
    y = np.arange(6) - 3
    for level, sigma in enumerate(sigmas):
        keep = 1 - np.exp(-(y[:, None] ** 2 + y**2) / (2 * sigma**2))
        expected = x[:, level].numpy() + np.fft.ifft2(np.fft.fft2(x[:, level].numpy()) * keep).real
        np.testing.assert_allclose(lfm(x)[:, level].detach(), expected, atol=2e-3)


def test_frequency_filter_of_a_published_level():
    """Sigma 9 on a grid of 16 also damps the mean, to 0.546 of it."""
    assert LFM(1, (16, 16), [9]).keep[0, 0, 0, 0].item() == pytest.approx(0.546, abs=5e-4)


def test_the_frequency_domain_stays_in_full_precision():
    lfm, x = LFM(4, (5, 5), [2]), torch.randn(1, 1, 4, 5, 5)
    expected = lfm(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lfm(x), expected)
    lfm(x.requires_grad_()).sum().backward()
    assert x.grad.abs().sum() > 0 and lfm.conv1.weight.grad.abs().sum() > 0


def test_queries_do_not_see_each_other():
    decoder, transformer = FusionDecoder(16), LightweightTransformer(16, 32).eval()
    queries, memory = torch.randn(2, 7, 16), torch.randn(2, 9, 16)
    together = transformer(decoder(queries, memory))
    for part in (slice(0, 1), slice(3, 7)):
        torch.testing.assert_close(transformer(decoder(queries[:, part], memory)), together[:, part])


@pytest.fixture
def twins():
    """Return this package's and PyTorch's layer with equal weights."""
    ours = LoneEncoderLayer(16, 32).eval()
    theirs = nn.TransformerEncoderLayer(16, 8, 32, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    for p in (*ours.parameters(), *theirs.parameters()):
        nn.init.normal_(p, std=0.5) if p.dim() == 1 else None
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_sequences_of_one_element_by_pytorchs_layer(twins):
    ours, theirs = twins
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x.view(15, 1, 16)).view(3, 5, 16))


def test_gradients_by_pytorchs_layer(twins):
    ours, theirs = twins
    x = torch.randn(15, 16)
    for layer, rows in ((ours, x), (theirs, x[:, None])):
        layer.train()
        for module in layer.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        layer.self_attn.dropout = 0.0
        layer(rows).pow(3).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)
    assert not ours.self_attn.in_proj_weight.grad[:32].any()  # queries and keys


def test_dropout_of_attention_takes_whole_heads():
    layer = LoneEncoderLayer(16, 32, dropout=0.5).train()
    layer.self_attn.out_proj = nn.Identity()
    attended = layer._attend(torch.randn(200, 16)).unflatten(-1, (8, 2))
    gone = (attended == 0).all(-1)
    assert torch.equal(gone, (attended == 0).any(-1))
    assert gone.float().mean().item() == pytest.approx(0.5, abs=0.05)
