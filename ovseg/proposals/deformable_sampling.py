"""Weighted sums of bilinear samples: the core of multi-scale deformable attention, without a compiled op.

Zhu et al., "Deformable DETR", ICLR 2021, arXiv 2010.04159, equation 3. One bilinear sample is a weighted sum of four
pixels, so a query's whole result is one weighted sum of rows of a table of all pixels of all levels, which PyTorch's
``embedding_bag`` computes without storing the samples. Each map gets a border of zeros in the table: points outside
are clamped to the border and need no special case.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

logger = logging.getLogger(__name__)

COMPILED_OP = "MultiScaleDeformableAttention"  # the extension module that Deformable DETR's setup builds
BORDER = (1, 2)  # pixels of zeros before and after each axis: a point on the last pixel still has a neighbour

Sizes = Sequence[tuple[int, int]]


def sample_levels(value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Sum up weighted bilinear samples of several maps; outside of a map everything is zero.

    On CUDA the compiled op is used if it is installed.

    Args:
        value: (B, S, heads, D) pixels of all levels, level after level, each row by row.
        sizes: (height, width) of each of the L levels; S pixels together.
        x, y: (B, Q, heads, L, P) in pixels of the level, 0 is the centre of the first pixel.
        weights: (B, Q, heads, L, P).

    Returns:
        (B, Q, heads, D) of the value's dtype; the computation is in float32, or float64 where an argument is.
    """
    dtype = functools.reduce(torch.promote_types, (x.dtype, y.dtype, weights.dtype, value.dtype), torch.float32)
    operands = (value.to(dtype), sizes, x.to(dtype), y.to(dtype), weights.to(dtype))
    if torch.compiler.is_compiling():
        return sample_grids(*operands).to(value.dtype)
    op = compiled_op() if value.is_cuda else None
    result = _SampleTable.apply(*operands) if op is None else sample_compiled(op, *operands)
    return result.to(value.dtype)


def sample_grids(value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Compute :func:`sample_levels` by ``grid_sample``, level after level, which graph formats have an operator for.

    It stores all samples.
    """
    heads, queries = value.shape[2], x.shape[1]
    result = value.new_zeros(())
    parts = value.split([height * width for height, width in sizes], 1)
    for level, ((height, width), part) in enumerate(zip(sizes, parts, strict=True)):
        maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))  # (B * heads, D, h, w)
        grid = torch.stack(((2 * x[..., level, :] + 1) / width - 1, (2 * y[..., level, :] + 1) / height - 1), -1)
        grid = grid.transpose(1, 2).flatten(0, 1)  # (B * heads, Q, P, 2), -1 .. 1 between the borders
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        result = result + (sampled * weights[..., level, :].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return result.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).reshape(-1, queries, heads, value.shape[-1])


class _SampleTable(Function):
    """Autograd function of :func:`sample_levels`, whose backward pass recomputes indices instead of storing them."""

    @staticmethod
    def forward(ctx, value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, x, y, weights)
        ctx.sizes = sizes
        corners = _Corners(x, y, weights, sizes)
        return corners.sum_up(_with_border(value, sizes)).view(*x.shape[:3], value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, x, y, weights = ctx.saved_tensors
        corners = _Corners(x, y, weights, ctx.sizes)
        gradient = gradient.reshape(-1, gradient.shape[-1]).contiguous()  # (bags, D)
        of_value = of_x = of_y = of_weights = None
        if ctx.needs_input_grad[0]:
            of_value = _without_border(corners.scatter(gradient, len(value)), ctx.sizes, value.shape)
        if any(ctx.needs_input_grad[2:]):
            of_x, of_y, of_weights = corners.gradients(_with_border(value, ctx.sizes), gradient)
        return of_value, None, of_x, of_y, of_weights


class _Corners:
    """The four pixels around every sample: their rows in the table, and their weights.

    A bag is the sum of one query of one head over 4 x L x P pixels; there are B * Q * heads bags.
    """

    def __init__(self, x: Tensor, y: Tensor, weights: Tensor, sizes: Sizes):
        self.shape = x.shape
        self.sizes = sizes
        batch, queries, heads, levels, points = x.shape
        flat = (batch, queries, heads * levels * points)  # one long inner axis: fewer, larger operations

        def per_sample(numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
            rows = [torch.full((points,), number, dtype=dtype, device=x.device) for number in numbers]  # no transfer
            return torch.stack(rows).expand(heads, levels, points).flatten()

        self.limit_x = per_sample([width + 1 for _, width in sizes], x.dtype)
        self.limit_y = per_sample([height + 1 for height, _ in sizes], x.dtype)
        self.x, self.y = x.reshape(flat), y.reshape(flat)
        self.weights = weights.reshape(flat)
        inside_x, inside_y = (self._inside(p, limit) for p, limit in ((self.x, self.limit_x), (self.y, self.limit_y)))
        column, row = inside_x.int(), inside_y.int()
        self.fraction_x, self.fraction_y = inside_x.sub_(column), inside_y.sub_(row)

        lengths = [height * width for height, width in _bordered(sizes)]
        self.stride = per_sample([width * heads for _, width in _bordered(sizes)], torch.int32)  # from row to row
        start = per_sample([sum(lengths[:i]) * heads for i in range(levels)], torch.int32)
        start = start + torch.arange(heads, dtype=torch.int32, device=x.device).repeat_interleave(levels * points)
        image = torch.arange(batch, dtype=torch.int32, device=x.device)[:, None, None] * (sum(lengths) * heads)
        # row of the table that holds each sample's upper left pixel
        self.first = row.mul_(self.stride).add_(column, alpha=heads).add_(start + image)

    @staticmethod
    def _inside(position: Tensor, limit: Tensor) -> Tensor:
        """Return positions in pixels of the bordered map, clamped to it; 0 for values that are not finite."""
        return (position + 1).nan_to_num_(0.0).clamp_(limit.new_zeros(()), limit)

    def _bags(self, corners: Sequence[Tensor]) -> Tensor:
        """Return four tensors (B, Q, heads * L * P) as one (bags, 4 * L * P)."""
        batch, queries, heads, levels, points = self.shape
        parts = [corner.view(batch, queries, heads, levels * points) for corner in corners]
        return torch.stack(parts, 3).view(-1, 4 * levels * points)

    def rows(self) -> Tensor:
        heads = self.shape[2]
        below = self.first + self.stride
        return self._bags((self.first, self.first + heads, below, below + heads))

    def corner_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lower = self.weights * self.fraction_y
        upper = self.weights - lower
        upper_right, lower_right = upper * self.fraction_x, lower * self.fraction_x
        return upper - upper_right, upper_right, lower - lower_right, lower_right

    def sum_up(self, table: Tensor) -> Tensor:
        """Return the weighted sum of rows of the table for each bag; (rows, D) -> (bags, D)."""
        weights = self._bags(self.corner_weights())
        return F.embedding_bag(self.rows(), table, per_sample_weights=weights, mode="sum")

    def gradients(self, table: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of x, y and the weights, (B, Q, heads, L, P) each, from that of the result, (bags, D)."""
        weights = self._bags(self.corner_weights()).requires_grad_()
        with torch.enable_grad():
            result = F.embedding_bag(self.rows(), table, per_sample_weights=weights, mode="sum")
        (products,) = torch.autograd.grad(result, weights, gradient)  # of each pixel and the gradient of its bag
        products = products.view(*self.shape[:3], 4, -1).unbind(3)
        upper_left, upper_right, lower_left, lower_right = (part.reshape(self.x.shape) for part in products)
        upper = torch.lerp(upper_left, upper_right, self.fraction_x)
        lower = torch.lerp(lower_left, lower_right, self.fraction_x)
        of_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, self.fraction_y) * self.weights
        of_y = (lower - upper) * self.weights
        # a sample beyond the border is constant zero
        of_x.mul_((self.x > -1) & (self.x + 1 < self.limit_x))
        of_y.mul_((self.y > -1) & (self.y + 1 < self.limit_y))
        of_weights = torch.lerp(upper, lower, self.fraction_y)
        return of_x.view(self.shape), of_y.view(self.shape), of_weights.view(self.shape)

    def scatter(self, gradient: Tensor, batch: int) -> Tensor:
        """Return the gradient of the table, (B, rows of an image, heads * D), from that of the result, (bags, D).

        The sum over the samples of a pixel is a weighted sum of bags, which ``embedding_bag`` computes over the samples
        in the order of their pixels. Sorting the upper left pixels is enough: the others are next to them. The result
        is deterministic, unlike that of atomic additions.
        """
        order = self.first.flatten().argsort()
        lengths = [height * width for height, width in _bordered(self.sizes)]
        rows = batch * sum(lengths) * self.shape[2]
        ends = torch.bincount(self.first.flatten(), minlength=rows).cumsum(0)
        starts = F.pad(ends[:-1], (1, 0))
        bags = order // (self.shape[3] * self.shape[4])

        def sums(weights: Tensor) -> Tensor:
            weights = weights.flatten().index_select(0, order)
            result = F.embedding_bag(bags, gradient, offsets=starts, per_sample_weights=weights, mode="sum")
            return result.view(batch, sum(lengths), -1)

        total, *others = (sums(weights) for weights in self.corner_weights())
        for (down, right), part in zip(((0, 1), (1, 0), (1, 1)), others, strict=True):
            for (height, width), whole, piece in zip(
                _bordered(self.sizes), total.split(lengths, 1), part.split(lengths, 1), strict=True
            ):
                whole = whole.view(batch, height, width, -1)
                whole[:, down:, right:] += piece.view(whole.shape)[:, : height - down, : width - right]
        return total


def _bordered(sizes: Sizes) -> list[tuple[int, int]]:
    return [(height + sum(BORDER), width + sum(BORDER)) for height, width in sizes]


def _with_border(value: Tensor, sizes: Sizes) -> Tensor:
    """Return the table of pixels with borders; (B, S, heads, D) -> (B * bordered pixels * heads, D)."""
    maps = value.flatten(2).split([height * width for height, width in sizes], 1)
    maps = [F.pad(map_.unflatten(1, size), (0, 0, *BORDER, *BORDER)) for map_, size in zip(maps, sizes, strict=True)]
    return torch.cat([map_.flatten(1, 2) for map_ in maps], 1).view(-1, value.shape[-1])


def _without_border(table: Tensor, sizes: Sizes, shape: torch.Size) -> Tensor:
    """Remove the borders; (B, bordered pixels, heads * D) -> (B, S, heads, D)."""
    before = BORDER[0]
    bordered = _bordered(sizes)
    maps = table.split([height * width for height, width in bordered], 1)
    inner = [
        map_.unflatten(1, size)[:, before : before + height, before : before + width].flatten(1, 2)
        for map_, size, (height, width) in zip(maps, bordered, sizes, strict=True)
    ]
    return torch.cat(inner, 1).view(shape)


@functools.cache
def compiled_op() -> ModuleType | None:
    """Return the compiled op; None if it is not installed or cannot be imported."""
    try:
        return importlib.import_module(COMPILED_OP)
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError) as error:
        logger.warning("%s is installed but cannot be used (%s): continuing without it", COMPILED_OP, error)
        return None


def sample_compiled(op: ModuleType, value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Compute :func:`sample_levels` by the compiled op, whose coordinates are 0 to 1 over each map."""
    height, width = value.new_tensor(sizes).T[:, :, None]  # (L, 1) each
    locations = torch.stack(((x + 0.5) / width, (y + 0.5) / height), -1)
    shapes = torch.tensor(sizes, device=value.device)
    starts = F.pad(shapes.prod(1).cumsum(0)[:-1], (1, 0))
    result = _SampleCompiled.apply(value.contiguous(), shapes, starts, locations, weights.contiguous(), op)
    return result.view(*x.shape[:3], value.shape[-1])


class _SampleCompiled(Function):
    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, op):
        ctx.op = op
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        # the last argument: number of images at a time, a divisor of the batch size
        return op.ms_deform_attn_forward(value, shapes, starts, locations, weights, len(value))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        saved = ctx.saved_tensors
        of_value, of_locations, of_weights = ctx.op.ms_deform_attn_backward(
            *saved, gradient.contiguous(), len(saved[0])
        )
        return of_value, None, None, of_locations, of_weights, None
