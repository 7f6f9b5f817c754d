"""`gather_adaln` (kept rows of x, then adaLN) and `adaln` (rows that are packed already)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..kernels import native
from .dispatch import choose
from .library import define
from .validate import Check


class _GatherNative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, shift, scale, eps):
        rows, normed = torch.ops.diffratio.gather_adaln(x, index, shift, scale, eps, implementation="native")
        ctx.save_for_backward(rows, index, shift, scale)
        ctx.x_shape, ctx.eps = x.shape, eps
        ctx.set_materialize_grads(False)
        return rows, normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows, grad_normed):
        rows, index, shift, scale = ctx.saved_tensors
        batch, tokens, _ = ctx.x_shape
        if grad_normed is None:
            grad_normed = torch.zeros_like(rows)
        grad_x, grad_shift, grad_scale = torch.ops.diffratio.adaln_backward(
            rows, index, tokens, scale, ctx.eps, grad_rows, grad_normed, batch * tokens
        )
        return grad_x.view(ctx.x_shape), None, grad_shift.to(shift.dtype), grad_scale.to(scale.dtype), None


class _AdalnNative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, index, tokens, shift, scale, eps):
        normed = torch.ops.diffratio.adaln(rows, index, tokens, shift, scale, eps, implementation="native")
        ctx.save_for_backward(rows, index, shift, scale)
        ctx.tokens, ctx.eps = tokens, eps
        return normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_normed):
        rows, index, shift, scale = ctx.saved_tensors
        grad_x, grad_shift, grad_scale = torch.ops.diffratio.adaln_backward(
            rows, index, ctx.tokens, scale, ctx.eps, None, grad_normed, None
        )
        return grad_x, None, None, grad_shift.to(shift.dtype), grad_scale.to(scale.dtype), None


GATHER_KERNELS = {"native": native.gather_adaln, "reference": reference.gather_adaln}
GATHER_DIFFERENTIABLE = {"native": _GatherNative.apply, "reference": reference.gather_adaln}
KERNELS = {"native": native.adaln, "reference": reference.adaln}
DIFFERENTIABLE = {"native": _AdalnNative.apply, "reference": reference.adaln}


def _check_gather(x, index, shift, scale, eps):
    check = Check("gather_adaln")
    check.tensor("x", x, "B N D")
    check.tensor("shift", shift, "B D")
    check.tensor("scale", scale, "B D")
    check.index(index, x.shape[0] * x.shape[1])
    check.positive("eps", eps)


def _check(rows, index, tokens, shift, scale, eps):
    check = Check("adaln")
    check.tensor("rows", rows, "T D")
    check.tensor("shift", shift, "B D")
    check.tensor("scale", scale, "B D")
    if tokens < 1:
        check.fail(f"tokens={tokens} must be positive")
    check.index(index, shift.shape[0] * tokens)
    check.positive("eps", eps)


def _run_gather(table):
    def run(x, index, shift, scale, eps=1e-6, *, implementation="auto"):
        _check_gather(x, index, shift, scale, eps)
        return table[choose("gather_adaln", implementation, x.device)](x, index, shift, scale, eps)

    return run


def _run(table):
    def run(rows, index, tokens, shift, scale, eps=1e-6, *, implementation="auto"):
        _check(rows, index, tokens, shift, scale, eps)
        return table[choose("adaln", implementation, rows.device)](rows, index, tokens, shift, scale, eps)

    return run


def _fake_gather(x, index, shift, scale, eps=1e-6, *, implementation="auto"):
    _check_gather(x, index, shift, scale, eps)
    rows = x.new_empty(index.shape[0], x.shape[2])
    return rows, torch.empty_like(rows)


def _fake(rows, index, tokens, shift, scale, eps=1e-6, *, implementation="auto"):
    _check(rows, index, tokens, shift, scale, eps)
    return rows.new_empty(rows.shape)


def _fake_backward(rows, index, tokens, scale, eps, grad_rows, grad_normed, x_rows):
    count = rows.shape[0] if x_rows is None else x_rows
    grad_scale = scale.new_empty(scale.shape, dtype=torch.promote_types(rows.dtype, torch.float32))
    return rows.new_empty(count, rows.shape[1]), grad_scale, torch.empty_like(grad_scale)


define(
    "gather_adaln(Tensor x, Tensor index, Tensor shift, Tensor scale, float eps=1e-6, *, "
    'str implementation="auto") -> (Tensor, Tensor)',
    kernel=_run_gather(GATHER_KERNELS),
    fake=_fake_gather,
    differentiable=_run_gather(GATHER_DIFFERENTIABLE),
)
define(
    "adaln(Tensor rows, Tensor index, SymInt tokens, Tensor shift, Tensor scale, float eps=1e-6, *, "
    'str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
)
define(
    "adaln_backward(Tensor rows, Tensor index, SymInt tokens, Tensor scale, float eps, Tensor? grad_rows, "
    "Tensor grad_normed, SymInt? x_rows) -> (Tensor, Tensor, Tensor)",
    kernel=native.adaln_backward,
    fake=_fake_backward,
)


def gather_adaln(
    x: Tensor, index: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The kept rows of x, and LN(rows) * (1 + scale) + shift with each row's own sample's modulation.

    x [B, N, D]; index [T] int64, each row at most once; shift, scale [B, D] in any float dtype.
    Returns rows and normed, both [T, D] in the dtype of x; statistics in fp32 (fp64 for fp64).
    """
    return torch.ops.diffratio.gather_adaln(x, index, shift, scale, eps, implementation=implementation)


def adaln(
    rows: Tensor,
    index: Tensor,
    tokens: int,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    implementation: str = "auto",
) -> Tensor:
    """LN(rows) * (1 + scale) + shift for packed rows [T, D]; row t belongs to sample index[t] // tokens."""
    return torch.ops.diffratio.adaln(rows, index, tokens, shift, scale, eps, implementation=implementation)
