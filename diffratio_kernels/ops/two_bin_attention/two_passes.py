"""Attention of two bins by an attention that knows one."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...types import Nested, Seqlens
from ..two_bin_gelu.reference import small_rows


class _SmallRows(torch.autograd.Function):
    """Rows [T, ...] -> the small rows [S, ...] of each sample."""

    @staticmethod
    def forward(ctx, rows, small):
        ctx.save_for_backward(small)
        ctx.rows = rows.shape[0]
        return rows[small]

    @staticmethod
    def backward(ctx, grad):
        (small,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, small, grad), None


class _WithSmallRows(torch.autograd.Function):
    """Rows [T, ...] -> both bins [T + S, ...]: the rows, then the small ones again."""

    @staticmethod
    def forward(ctx, rows, small):
        ctx.save_for_backward(small)
        ctx.rows = rows.shape[0]
        return torch.cat([rows, rows[small]])

    @staticmethod
    def backward(ctx, grad):
        (small,) = ctx.saved_tensors
        # A row is small once, so that the order of the sum is fixed.
        return grad[: ctx.rows].index_add(0, small, grad[ctx.rows :]), None


def take_small(rows: Tensor, small: Tensor) -> Tensor:
    """Rows [T, ...] -> those at `small` [S]."""
    return _SmallRows.apply(rows, small) if torch.is_grad_enabled() else rows[small]


def with_small(rows: Tensor, small: Tensor) -> Tensor:
    """Rows [T, ...] -> all of them, then those at `small` again [T + S, ...]."""
    return _WithSmallRows.apply(rows, small) if torch.is_grad_enabled() else torch.cat([rows, rows[small]])


def two_passes(
    attention: Callable[[Tensor, Tensor, Tensor, Seqlens, float | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    nested: Nested,
    scale: float | None,
) -> Tensor:
    """query [T, H, d]; key, value [T, h, d] -> attention among the large sets, then among the small ones:
    [T + S, H, d]."""
    large, small = nested.cu_seqlens_large, nested.cu_seqlens_small
    sizes = nested.max_seqlen_large, nested.max_seqlen_large
    out = attention(query, key, value, Seqlens(large, large, *sizes), scale)
    if nested.small == 0:
        return out
    at = small_rows(nested)
    parts = [take_small(t, at) for t in (query, key, value)]
    sizes = nested.max_seqlen_small, nested.max_seqlen_small
    return torch.cat([out, attention(*parts, Seqlens(small, small, *sizes), scale)])
