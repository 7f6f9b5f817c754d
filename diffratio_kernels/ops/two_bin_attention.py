"""`two_bin_attention`: attention among each sample's large set and among its small set, which is a prefix."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..kernels import two_bin_sdpa
from ..kernels.triton import launchers as triton
from .attention import pick
from .dispatch import DIFFERENTIABLE, KERNELS
from .library import define, define_backward
from .validate import Check


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


small_rows_of = _SmallRows.apply
with_small_rows = _WithSmallRows.apply


def _composed(attention):
    """Two passes of an implementation that knows one bin."""

    def run(query, key, value, large_offsets, small_offsets, longest_large, longest_small, small, scale):
        large = attention(
            query, key, value, large_offsets, large_offsets, longest_large, longest_large, None, scale
        )
        if small == 0:
            return large
        at = reference.small_rows(large_offsets, small_offsets, small)
        parts = (small_rows_of(t, at) for t in (query, key, value))
        offsets = small_offsets, small_offsets, longest_small, longest_small
        return torch.cat([large, attention(*parts, *offsets, None, scale)])

    return run


class _TwoBinAttention(torch.autograd.Function):
    """The Triton kernels: one pass over the keys serves both bins, forward and backward."""

    @staticmethod
    def forward(ctx, query, key, value, large_offsets, small_offsets, *options):
        out, lse = torch.ops.diffratio.two_bin_attention_with_lse(
            query, key, value, large_offsets, small_offsets, *options
        )
        ctx.save_for_backward(query, key, value, out, lse, large_offsets, small_offsets)
        ctx.options = options
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        grads = torch.ops.diffratio.two_bin_attention_backward(
            grad_out, *ctx.saved_tensors, *ctx.options, implementation="triton"
        )
        return *grads, None, None, None, None, None, None


class _TwoBinSdpa(torch.autograd.Function):
    """On the CPU: one pass over the keys serves both bins in the forward pass."""

    @staticmethod
    def forward(ctx, query, key, value, samples, small, scale):
        out, lse = two_bin_sdpa.two_bin_attention(query, key, value, samples, small, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.options = samples, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        grads = two_bin_sdpa.two_bin_attention_backward(
            grad_out.contiguous(), *ctx.saved_tensors, *ctx.options
        )
        return *grads, None, None, None


def _sdpa(query, key, value, large_offsets, small_offsets, longest_large, longest_small, small, scale):
    args = large_offsets, small_offsets, longest_large, longest_small, small, scale
    if not two_bin_sdpa.takes(query, large_offsets):
        return _others["sdpa"](query, key, value, *args)
    samples = two_bin_sdpa.samples_of(*(offsets.diff().tolist() for offsets in args[:2]))
    # The kernels below torch's dispatcher want heads without gaps.
    rows = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    return _TwoBinSdpa.apply(*rows, samples, small, scale)


_others = {name: _composed(run) for name, run in KERNELS["attention"].items() if name != "triton"}
KERNELS["two_bin_attention"] = {"triton": triton.two_bin_attention} | _others | {"sdpa": _sdpa}
DIFFERENTIABLE["two_bin_attention"] = {"triton": _TwoBinAttention.apply} | _others | {"sdpa": _sdpa}


def _check(query, key, value, large_offsets, small_offsets, longest_large, longest_small, small, scale):
    check = Check("two_bin_attention")
    check.tensor("query", query, "T H d")
    for name, other in (("key", key), ("value", value)):
        check.tensor(name, other, "T H d", dtype_of=("query", query))
    if query.shape[2] % 8 or query.shape[2] == 0:
        check.fail(f"query has head_dim {query.shape[2]}, must be a positive multiple of 8")
    rows, small = ("query", query.shape[0]), ("small", small)
    check.offsets(large_offsets, small_offsets, rows, small, longest_large, longest_small)
    if scale is not None:
        check.positive("scale", scale)


def _run(table):
    def run(
        query, key, value, large_offsets, small_offsets, longest_large, longest_small, small,
        *, scale=None, implementation="auto",
    ):  # fmt: skip
        args = (
            query, key, value, large_offsets, small_offsets, longest_large, longest_small, small, scale
        )  # fmt: skip
        _check(*args)
        return table["two_bin_attention"][pick(implementation, query, "two_bin_attention")](
            *args
        ).contiguous()

    return run


def _fake(
    query, key, value, large_offsets, small_offsets, longest_large, longest_small, small,
    *, scale=None, implementation="auto",
):  # fmt: skip
    _check(query, key, value, large_offsets, small_offsets, longest_large, longest_small, small, scale)
    return query.new_empty(query.shape[0] + small, *query.shape[1:])


def _fake_with_lse(
    query, key, value, large_offsets, small_offsets, longest_large, longest_small, small, scale
):
    rows = query.shape[0] + small
    return query.new_empty(rows, *query.shape[1:]), query.new_empty(query.shape[1], rows, dtype=torch.float32)


def _autocast(query, key, value, *args, **kwargs):
    dtype = torch.get_autocast_dtype(query.device.type)
    with torch.autocast(query.device.type, enabled=False):
        return torch.ops.diffratio.two_bin_attention(
            query.to(dtype), key.to(dtype), value.to(dtype), *args, **kwargs
        )


define(
    "two_bin_attention(Tensor query, Tensor key, Tensor value, Tensor large_offsets, Tensor small_offsets, "
    "SymInt longest_large, SymInt longest_small, SymInt small, *, float? scale=None, "
    'str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
    autocast=_autocast,
)
define(
    "two_bin_attention_with_lse(Tensor query, Tensor key, Tensor value, Tensor large_offsets, "
    "Tensor small_offsets, SymInt longest_large, SymInt longest_small, SymInt small, float? scale) "
    "-> (Tensor, Tensor)",
    kernel=partial(triton.two_bin_attention, save_lse=True),
    fake=_fake_with_lse,
)
define_backward(
    "two_bin_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, "
    "Tensor lse, Tensor large_offsets, Tensor small_offsets, SymInt longest_large, SymInt longest_small, "
    "SymInt small, float? scale, *, str implementation) -> (Tensor, Tensor, Tensor)",
    lambda grad_out, query, key, value, *_, implementation: tuple(
        t.new_empty(t.shape) for t in (query, key, value)
    ),
)


def two_bin_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    longest_large: int,
    longest_small: int,
    small: int,
    *,
    scale: float | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Self-attention of two nested sets of rows.

    Args:
        query, key, value: [T, H, d], d a multiple of 8.
        large_offsets, small_offsets: int32 [B+1]: sample b's rows, and how many of the first of them are its
            small set.
        longest_large, longest_small: the most rows of one sample, in each set.
        small: S = small_offsets[B], the small rows of all samples.
        scale: of the products; None is 1/sqrt(d).
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T + S, H, d]: attention among each sample's large set, then among its small set.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.two_bin_attention(
        query, key, value, large_offsets, small_offsets, longest_large, longest_small, small,
        scale=scale, implementation=implementation,
    )  # fmt: skip
