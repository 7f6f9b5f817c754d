"""`two_bin_gelu`: the blend of both bins' GELUs, before fc2; in training only what GELU was given is kept."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import reference
from .dispatch import DIFFERENTIABLE, KERNELS, ROW_KERNELS, choose
from .library import define, define_backward
from .validate import Check


def sample_sums(rows: Tensor, offsets: Tensor) -> Tensor:
    """[T] -> [B]: the sum over each sample's packed rows, in fp64 and in one order."""
    return torch.segment_reduce(rows.double(), "sum", offsets=offsets.long(), initial=0)


class _TwoBinGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, pre, weight_large, large_offsets, small_offsets, rows):
        ctx.save_for_backward(pre, weight_large, large_offsets, small_offsets)
        ctx.implementation = implementation
        return torch.ops.diffratio.two_bin_gelu(
            pre, weight_large, large_offsets, small_offsets, rows, implementation=implementation
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        pre, weight_large, large_offsets, small_offsets = ctx.saved_tensors
        grad_pre, dots = torch.ops.diffratio.two_bin_gelu_backward(
            grad, pre, weight_large, large_offsets, small_offsets, implementation=ctx.implementation
        )
        return None, grad_pre, sample_sums(dots, large_offsets).to(weight_large.dtype), None, None, None


KERNELS["two_bin_gelu"] = {name: kernels.two_bin_gelu for name, kernels in ROW_KERNELS.items()}
DIFFERENTIABLE["two_bin_gelu"] = {name: partial(_TwoBinGelu.apply, name) for name in ROW_KERNELS}
for _table in (KERNELS, DIFFERENTIABLE):
    _table["two_bin_gelu"]["reference"] = reference.two_bin_gelu


def _check(pre, weight_large, large_offsets, small_offsets, rows):
    check = Check("two_bin_gelu")
    check.tensor("pre", pre, "T+S F")
    check.two_bins(weight_large, large_offsets, small_offsets, ("rows", rows), ("pre", pre.shape[0]))


def _run(table):
    def run(pre, weight_large, large_offsets, small_offsets, rows, *, implementation="auto"):
        args = pre, weight_large, large_offsets, small_offsets, rows
        _check(*args)
        return table["two_bin_gelu"][choose("two_bin_gelu", implementation, pre.device, pre.dtype)](*args)

    return run


def _fake(pre, weight_large, large_offsets, small_offsets, rows, *, implementation="auto"):
    _check(pre, weight_large, large_offsets, small_offsets, rows)
    return pre.new_empty(rows, pre.shape[1])


def _fake_backward(grad, pre, *_, implementation):
    dtype = torch.promote_types(pre.dtype, torch.float32)
    return pre.new_empty(pre.shape), pre.new_empty(grad.shape[0], dtype=dtype)


define(
    "two_bin_gelu(Tensor pre, Tensor weight_large, Tensor large_offsets, Tensor small_offsets, SymInt rows, "
    '*, str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
)
define_backward(
    "two_bin_gelu_backward(Tensor grad, Tensor pre, Tensor weight_large, Tensor large_offsets, "
    "Tensor small_offsets, *, str implementation) -> (Tensor, Tensor)",
    _fake_backward,
)


def two_bin_gelu(
    pre: Tensor,
    weight_large: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    rows: int,
    *,
    implementation: str = "auto",
) -> Tensor:
    """w gelu(large) + (1 - w) gelu(small), tanh GELU: fc2 is linear, and runs once on the blend.

    Args:
        pre: [T + S, F], the T large rows of all samples, then their S small rows again.
        weight_large: [B], w of each sample.
        large_offsets, small_offsets: int32 [B+1]: sample b's large rows, the first of which are its small
            set.
        rows: T.
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, F] in the dtype of pre.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.two_bin_gelu(
        pre, weight_large, large_offsets, small_offsets, rows, implementation=implementation
    )
