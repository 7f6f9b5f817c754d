"""`gather_adaln` (kept rows of x, then adaLN) and `adaln` (rows that are packed already)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import reference
from .dispatch import DIFFERENTIABLE, KERNELS, ROW_KERNELS, choose
from .library import define, define_backward
from .validate import Check


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, x, index, shift, scale, eps):
        rows, normed = torch.ops.diffratio.gather_adaln(
            x, index, shift, scale, eps, implementation=implementation
        )
        ctx.save_for_backward(rows, index, shift, scale)
        ctx.x_shape, ctx.eps, ctx.implementation = x.shape, eps, implementation
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
            rows,
            index,
            tokens,
            scale,
            ctx.eps,
            grad_rows,
            grad_normed,
            batch * tokens,
            implementation=ctx.implementation,
        )
        return (
            None,
            grad_x.view(ctx.x_shape),
            None,
            grad_shift.to(shift.dtype),
            grad_scale.to(scale.dtype),
            None,
        )


class _Adaln(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, rows, index, tokens, shift, scale, eps):
        normed = torch.ops.diffratio.adaln(
            rows, index, tokens, shift, scale, eps, implementation=implementation
        )
        ctx.save_for_backward(rows, index, shift, scale)
        ctx.tokens, ctx.eps, ctx.implementation = tokens, eps, implementation
        return normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_normed):
        rows, index, shift, scale = ctx.saved_tensors
        grad_x, grad_shift, grad_scale = torch.ops.diffratio.adaln_backward(
            rows,
            index,
            ctx.tokens,
            scale,
            ctx.eps,
            None,
            grad_normed,
            None,
            implementation=ctx.implementation,
        )
        return None, grad_x, None, None, grad_shift.to(shift.dtype), grad_scale.to(scale.dtype), None


KERNELS["gather_adaln"] = {name: kernels.gather_adaln for name, kernels in ROW_KERNELS.items()}
DIFFERENTIABLE["gather_adaln"] = {name: partial(_Gather.apply, name) for name in ROW_KERNELS}
KERNELS["adaln"] = {name: kernels.adaln for name, kernels in ROW_KERNELS.items()}
DIFFERENTIABLE["adaln"] = {name: partial(_Adaln.apply, name) for name in ROW_KERNELS}
for _table in (KERNELS, DIFFERENTIABLE):
    _table["gather_adaln"]["reference"] = reference.gather_adaln
    _table["adaln"]["reference"] = reference.adaln


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
        kernel = table["gather_adaln"][choose("gather_adaln", implementation, x.device, x.dtype)]
        return kernel(x, index, shift, scale, eps)

    return run


def _run(table):
    def run(rows, index, tokens, shift, scale, eps=1e-6, *, implementation="auto"):
        _check(rows, index, tokens, shift, scale, eps)
        kernel = table["adaln"][choose("adaln", implementation, rows.device, rows.dtype)]
        return kernel(rows, index, tokens, shift, scale, eps)

    return run


def _fake_gather(x, index, shift, scale, eps=1e-6, *, implementation="auto"):
    _check_gather(x, index, shift, scale, eps)
    rows = x.new_empty(index.shape[0], x.shape[2])
    return rows, torch.empty_like(rows)


def _fake(rows, index, tokens, shift, scale, eps=1e-6, *, implementation="auto"):
    _check(rows, index, tokens, shift, scale, eps)
    return rows.new_empty(rows.shape)


def _fake_backward(rows, index, tokens, scale, eps, grad_rows, grad_normed, x_rows, *, implementation):
    count = rows.shape[0] if x_rows is None else x_rows
    grad_scale = scale.new_empty(scale.shape, dtype=torch.promote_types(rows.dtype, torch.float32))
    return rows.new_empty(count, rows.shape[1]), grad_scale, torch.empty_like(grad_scale)


define(
    "gather_adaln(Tensor x, Tensor index, Tensor shift, Tensor scale, float eps=1e-6, *, "
    'str implementation="auto") -> (Tensor, Tensor)',
    kernel=_run_gather(KERNELS),
    fake=_fake_gather,
    differentiable=_run_gather(DIFFERENTIABLE),
)
define(
    "adaln(Tensor rows, Tensor index, SymInt tokens, Tensor shift, Tensor scale, float eps=1e-6, *, "
    'str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
)
define_backward(
    "adaln_backward(Tensor rows, Tensor index, SymInt tokens, Tensor scale, float eps, Tensor? grad_rows, "
    "Tensor grad_normed, SymInt? x_rows, *, str implementation) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)


def gather_adaln(
    x: Tensor, index: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The kept rows of x, and LN(rows) * (1 + scale) + shift with each row's own sample's modulation.

    Args:
        x: tokens [B, N, D]; statistics are computed in fp32 (fp64 for fp64).
        index: int64 [T], rows of the flattened [B*N], each at most once.
        shift, scale: [B, D], any float dtype.
        eps: of the layer norm.
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        rows and normed, both [T, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
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
    """LN(rows) * (1 + scale) + shift for rows that are packed already.

    Args:
        rows: [T, D].
        index: int64 [T]; row t belongs to sample index[t] // tokens.
        tokens: N of a sample.
        shift, scale: [B, D], any float dtype.
        eps: of the layer norm.
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, D] in the dtype of rows.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.adaln(rows, index, tokens, shift, scale, eps, implementation=implementation)
