"""Deformable attention against one ``grid_sample`` per level, and against a compiled op's interface."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from ovseg.errors import OvsegError
from ovseg.proposals import deformable_sampling
from ovseg.proposals.deformable_attention import DeformableAttention, Pyramid
from ovseg.proposals.deformable_sampling import compiled_op, sample_compiled, sample_grids, sample_levels

SIZES = ((2, 3), (5, 4), (1, 7))


def operands(dtype=torch.float64, batch=2, queries=6, heads=3, channels=4, points=2, spread=3.0):
    torch.manual_seed(0)
    pixels = sum(height * width for height, width in SIZES)
    shape = (batch, queries, heads, len(SIZES), points)
    value = torch.randn(batch, pixels, heads, channels, dtype=dtype)
    x, y = (2 + spread * torch.randn(shape, dtype=dtype) for _ in range(2))  # about a third is outside
    weights = torch.randn(shape, dtype=dtype)
    return value, SIZES, x, y, weights


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.003)],
)
def test_equals_grid_sample(dtype, tolerance):
    value, sizes, x, y, weights = operands()
    expected = sample_grids(value, sizes, x, y, weights)
    actual = sample_levels(value.to(dtype), sizes, x, y, weights.to(dtype))
    assert actual.dtype == dtype
    assert actual.shape == (2, 6, 3, 4)
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance


def test_gradients_equal_those_of_grid_sample():
    value, sizes, *rest = operands()
    gradient = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    results = []
    for function in (sample_grids, sample_levels):
        leaves = [tensor.clone().requires_grad_() for tensor in (value, *rest)]
        results.append(torch.autograd.grad(function(leaves[0], sizes, *leaves[1:]), leaves, gradient))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    value, sizes, *rest = operands(batch=2, queries=3, heads=2, channels=2, points=1)
    leaves = [tensor.requires_grad_() for tensor in (value, *rest)]
    assert torch.autograd.gradcheck(lambda value, *rest: sample_levels(value, sizes, *rest), leaves)


def test_only_what_is_asked_for_gets_a_gradient():
    value, sizes, x, y, weights = operands(torch.float32)
    weights.requires_grad_()
    sample_levels(value, sizes, x, y, weights).sum().backward()
    assert weights.grad.abs().sum() > 0
    value.requires_grad_()
    sample_levels(value, sizes, x, y, weights.detach()).sum().backward()
    assert value.grad.abs().sum() > 0


def test_pixel_centres_and_what_is_outside():
    value = torch.arange(1.0, 7)[None, :, None, None]  # 2 x 3: 1 2 3 / 4 5 6

    def at(x, y):
        place = torch.tensor([x, y])[:, None, None, None, None, None]
        return sample_levels(value, ((2, 3),), *place, torch.ones(1, 1, 1, 1, 1)).item()

    assert at(0.0, 0.0) == 1
    assert at(2.0, 1.0) == 6
    assert at(0.5, 0.5) == 3
    assert at(-0.5, 0.0) == 0.5  # half of it is zero
    assert at(2.75, 1.0) == 1.5
    assert at(-1.0, 0.0) == at(3.0, 0.0) == at(0.0, -1e9) == at(0.0, 2.0) == at(1e30, 1e30) == 0


def test_places_that_are_not_finite_are_no_crash():
    value, sizes, x, y, weights = operands(torch.float32)
    value.requires_grad_()
    x[0, 0], y[1] = torch.nan, torch.inf
    result = sample_levels(value, sizes, x, y, weights)
    result.sum().backward()
    assert result.shape == (2, 6, 3, 4)


def test_no_query_at_all():
    value, sizes, x, y, weights = operands(torch.float32, queries=0)
    value.requires_grad_()
    result = sample_levels(value, sizes, x, y, weights)
    assert result.shape == (2, 0, 3, 4)
    result.sum().backward()
    assert not value.grad.any()


def fake_op():
    """Return a stand-in for the compiled op: points from 0 to 1, sizes and starts of levels as tensors."""

    def forward(value, shapes, starts, locations, weights, images_at_a_time):
        assert len(value) % images_at_a_time == 0
        sizes = [tuple(size) for size in shapes.tolist()]
        assert starts.tolist() == [sum(h * w for h, w in sizes[:i]) for i in range(len(sizes))]
        height, width = shapes.T[:, :, None]
        x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
        return sample_grids(value, sizes, x, y, weights).flatten(2)

    def backward(value, shapes, starts, locations, weights, gradient, images_at_a_time):
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        with torch.enable_grad():
            result = forward(leaves[0], shapes, starts, *leaves[1:], images_at_a_time)
        return torch.autograd.grad(result, leaves, gradient)

    module = ModuleType(deformable_sampling.COMPILED_OP)
    module.ms_deform_attn_forward, module.ms_deform_attn_backward = forward, backward
    return module


def test_compiled_op_gives_the_same():
    value, sizes, *rest = operands()
    gradient = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    results = []
    for function in (sample_levels, lambda *given: sample_compiled(fake_op(), *given)):
        leaves = [tensor.clone().requires_grad_() for tensor in (value, *rest)]
        result = function(leaves[0], sizes, *leaves[1:])
        results.append((result, *torch.autograd.grad(result, leaves, gradient)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.fixture
def fresh_search():
    compiled_op.cache_clear()
    yield
    compiled_op.cache_clear()


def test_compiled_op_is_found(monkeypatch, fresh_search):
    op = fake_op()
    monkeypatch.setitem(sys.modules, deformable_sampling.COMPILED_OP, op)
    assert compiled_op() is op
    # the op works on CUDA only, and is not used here
    op.ms_deform_attn_forward = None
    sample_levels(*operands())


def test_compiled_op_is_used_on_cuda(monkeypatch, fresh_search):
    monkeypatch.setitem(sys.modules, deformable_sampling.COMPILED_OP, fake_op())
    given = []
    monkeypatch.setattr(deformable_sampling, "sample_compiled", lambda op, *rest: given.extend(rest) or rest[0])
    value, *rest = operands(torch.float16)

    class OnCuda(torch.Tensor):
        is_cuda = True

    sample_levels(value.as_subclass(OnCuda), *rest)
    assert given[0].dtype == torch.float32  # the op does not support half precision


def test_broken_compiled_op_is_left_alone(monkeypatch, fresh_search, caplog):
    def broken(name):
        raise ImportError("undefined symbol: _ZN2at")

    monkeypatch.setattr(deformable_sampling, "importlib", SimpleNamespace(import_module=broken))
    assert compiled_op() is None
    assert "MultiScaleDeformableAttention is installed but cannot be used (undefined symbol" in caplog.text


def test_pyramid():
    pyramid = Pyramid.of(((1, 2), (2, 4)))
    assert pyramid.x.shape == (2 + 8, 2)
    # the first pixel's centre, on its own level and between the first two columns of the finer one
    assert pyramid.x[0].tolist() == [0, 0.5]
    assert pyramid.y[0].tolist() == [0, 0.5]
    # the finer level's second row, last column
    assert pyramid.x[-1].tolist() == [1.25, 3]
    assert pyramid.y[-1].tolist() == [0.25, 1]


def test_new_attention_looks_around_each_place_equally():
    attention = DeformableAttention(16, heads=8, levels=2, points=3)
    offsets = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    assert torch.allclose(offsets.abs().amax(-1)[..., 2], torch.tensor(3.0))
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    directions = {tuple(direction) for direction in offsets[:, 0, 0].round().int().tolist()}
    assert directions == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)}
    # constant maps: all points inside have equal values
    with torch.no_grad():
        attention.value_proj.weight.copy_(torch.eye(16))
        attention.output_proj.weight.copy_(torch.eye(16))
    pyramid = Pyramid.of(((9, 9), (9, 9)))
    result = attention(torch.randn(1, 162, 16), torch.ones(1, 162, 16), pyramid)
    torch.testing.assert_close(result[0, 40], torch.ones(16))  # the middle


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision(dtype):
    torch.manual_seed(0)
    attention = DeformableAttention(16, heads=4, levels=3, points=2)
    nn.init.normal_(attention.sampling_offsets.weight, std=0.1)
    pyramid = Pyramid.of(SIZES)
    query, value = torch.randn(2, 2, len(pyramid.x), 16)
    exact = attention(query, value, pyramid)
    with torch.autocast("cpu", dtype=dtype):
        lowered = attention(query, value, pyramid)
    assert lowered.dtype == dtype
    assert (lowered.float() - exact).abs().max() < 0.05 * exact.abs().max()
    cast = attention.to(dtype)(query.to(dtype), value.to(dtype), pyramid)
    assert cast.dtype == dtype
    assert (cast.float() - exact).abs().max() < 0.05 * exact.abs().max()
    cast.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_heads_must_share_the_channels():
    with pytest.raises(OvsegError, match="10 channels cannot be shared by 4 heads equally"):
        DeformableAttention(10, heads=4, levels=3, points=4)
