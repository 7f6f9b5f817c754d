"""Attention of two nested sets of rows on the CPU, through the kernels behind torch's own attention.

All queries attend to the keys of the small set, which gives the small set's result as well, and then to the
other keys; their log-sum-exps join both. A sample's small set is the first of its rows.
"""

from itertools import accumulate

import torch
from torch import Tensor

from ..._register import first_order
from ...types import Nested
from ..attention import sdpa
from ..attention.sdpa import runs
from .two_passes import two_passes

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def two_bin_attention(
    query: Tensor, key: Tensor, value: Tensor, nested: Nested, scale: float | None
) -> Tensor:
    """query [T, H, d]; key, value [T, h, d] -> [T + S, H, d]: one pass over the keys serves both bins in the
    forward pass.

    Two passes of torch's own attention where both parts would be joined with a rounding in between, where
    counts cannot be read, or where heads share keys, which the kernels below torch's dispatcher do not know.
    """
    wide = query.dtype in (torch.float32, torch.float64)
    readable = query.device.type == "cpu" and type(query) is type(nested.cu_seqlens_large) is Tensor
    if not wide or not readable or query.shape[1] != key.shape[1]:
        return two_passes(sdpa.attention, query, key, value, nested, scale)
    large, small = nested.cu_seqlens_large.diff().tolist(), nested.cu_seqlens_small.diff().tolist()
    # The kernels below torch's dispatcher want heads without gaps.
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    return _TwoBinSdpa.apply(query, key, value, samples_of(large, small), nested.small, scale)


class _TwoBinSdpa(torch.autograd.Function):
    """query, key, value [T, H, d] -> both bins' results [T + S, H, d]."""

    @staticmethod
    def forward(ctx, query, key, value, samples, small, scale):
        rows, heads, width = query.shape
        out = query.new_empty(rows + small, heads, width)
        lse = query.new_empty(rows + small, heads, 1)
        for part in samples:
            q, k, v = (part.of(t) for t in (query, key, value))
            split = part.small if 0 < part.small < part.large else part.large
            one, one_lse = _flash(q, k[:, :, :split], v[:, :, :split], scale=scale)
            one_lse = one_lse[..., None]
            if part.small:
                part.of(out, small=True).copy_(one[:, :, : part.small])
                part.of(lse, small=True).copy_(one_lse[:, :, : part.small])
            if split < part.large:
                other, other_lse = _flash(q, k[:, :, split:], v[:, :, split:], scale=scale)
                both = torch.logaddexp(one_lse, other_lse[..., None])
                one, one_lse = torch.lerp(other, one, (one_lse - both).exp()), both
            part.of(out).copy_(one)
            part.of(lse).copy_(one_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.samples, ctx.scale, ctx.name = samples, scale, "two_bin_attention"
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad_out):
        query, key, value, out, lse = ctx.saved_tensors
        grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)]
        for part in ctx.samples:
            operands = [part.of(t) for t in (query, key, value)]
            grad_large, grad_small = part.of(grad_out), part.of(grad_out, small=True)
            if part.small == part.large:
                grad_large = grad_large + grad_small
            done = _one_bin(grad_large, *operands, part.of(out), part.of(lse), ctx.scale)
            for grad, own in zip(grads, done, strict=True):
                part.of(grad).copy_(own)
            if 0 < part.small < part.large:
                results = part.of(out, small=True), part.of(lse, small=True)
                first = (t[:, :, : part.small] for t in operands)
                done = _one_bin(grad_small, *first, *results, ctx.scale)
                for grad, own in zip(grads, done, strict=True):
                    part.of(grad)[:, :, : part.small] += own
        return *grads, None, None, None


def _one_bin(grad, q, k, v, out, lse, scale) -> tuple[Tensor, Tensor, Tensor]:
    return _flash_backward(grad, q, k, v, out, lse.squeeze(-1), 0.0, False, scale=scale)


class Samples:
    """Consecutive samples of equal counts: where their rows lie among those of both bins [T + S, ...]."""

    def __init__(self, count: int, large: int, small: int, first_large: int, first_small: int):
        self.count, self.large, self.small = count, large, small
        self.large_rows = slice(first_large, first_large + count * large)
        self.small_rows = slice(first_small, first_small + count * small)

    def of(self, rows: Tensor, small: bool = False) -> Tensor:
        """[., H, d] -> a view [count, H, kept, d] of the samples' rows of one bin."""
        part = rows[self.small_rows if small else self.large_rows]
        return part.unflatten(0, (self.count, -1)).transpose(1, 2)


def samples_of(large: list[int], small: list[int]) -> list[Samples]:
    """large, small: kept counts of every sample."""
    first_large, first_small = ([0, *accumulate(kept)] for kept in (large, small))
    return [
        Samples(n, large[b], small[b], first_large[b], sum(large) + first_small[b])
        for b, n in runs(large, small)
        if large[b] > 0
    ]
