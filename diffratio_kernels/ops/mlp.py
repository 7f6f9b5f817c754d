"""`mlp`: two products around GELU (tanh); in training only what GELU was given is kept, not what it gave."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import cublaslt
from ..kernels.triton import launchers as triton
from .dispatch import DIFFERENTIABLE, KERNELS, choose
from .library import define, define_backward
from .validate import Check


def _torch(rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    inner = F.gelu(F.linear(rows, fc1_weight, fc1_bias), approximate="tanh")
    return F.linear(inner, fc2_weight, fc2_bias)


def _triton(rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    inner, _ = triton.linear_gelu(rows, fc1_weight, fc1_bias, False)
    return F.linear(inner, fc2_weight, fc2_bias)


def _cublaslt(rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    return F.linear(cublaslt.linear_gelu(rows, fc1_weight, fc1_bias), fc2_weight, fc2_bias)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        inner, pre = torch.ops.diffratio.linear_gelu(rows, fc1_weight, fc1_bias)
        ctx.save_for_backward(rows, pre, fc1_weight, fc2_weight)
        ctx.biases = fc1_bias is not None, fc2_bias is not None
        return F.linear(inner, fc2_weight, fc2_bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        rows, pre, fc1_weight, fc2_weight = ctx.saved_tensors
        grad_pre, inner = torch.ops.diffratio.linear_gelu_backward(
            grad_out, fc2_weight, pre, implementation="triton"
        )
        return (
            grad_pre @ fc1_weight,
            grad_pre.t() @ rows,
            grad_pre.sum(0) if ctx.biases[0] else None,
            grad_out.t() @ inner,
            grad_out.sum(0) if ctx.biases[1] else None,
        )


def differentiable(*args):
    """The Triton path with autograd; under autocast in its dtype, as torch's own products would be."""
    device = args[0].device.type
    if not torch.is_autocast_enabled(device):
        return _Mlp.apply(*args)
    with torch.autocast(device, enabled=False):
        dtype = torch.get_autocast_dtype(device)
        return _Mlp.apply(*(arg if arg is None else arg.to(dtype) for arg in args))


KERNELS["mlp"] = {"cublaslt": _cublaslt, "triton": _triton, "torch": _torch}
DIFFERENTIABLE["mlp"] = {"triton": differentiable, "torch": _torch}


def _check(rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    check = Check("mlp")
    like_rows = {"dtype_of": ("rows", rows)}
    check.tensor("rows", rows, "T D")
    check.tensor("fc1_weight", fc1_weight, "F D", **like_rows)
    check.optional("fc1_bias", fc1_bias, "F", **like_rows)
    check.tensor("fc2_weight", fc2_weight, "D F", **like_rows)
    check.optional("fc2_bias", fc2_bias, "D", **like_rows)


def pick_mlp(implementation: str, rows: Tensor, fc1_bias: Tensor | None, gradient: bool) -> str:
    """The implementation for these arguments: cuBLASLt's epilogue needs a bias, gives no gradient."""
    reason = "gives no gradient" if gradient else "needs fc1_bias" if fc1_bias is None else None
    if implementation == "cublaslt" and reason:
        raise ValueError(f"mlp: implementation='cublaslt' {reason}")
    return choose("mlp", implementation, rows.device, rows.dtype, "cublaslt" if reason else None)


def _run(table):
    def run(rows, *weights, implementation="auto"):
        _check(rows, *weights)
        chosen = pick_mlp(implementation, rows, weights[1], table is DIFFERENTIABLE)
        return table["mlp"][chosen](rows, *weights)

    return run


def _fake(rows, *weights, implementation="auto"):
    _check(rows, *weights)
    return rows.new_empty(rows.shape)


def _autocast(rows, *weights, implementation="auto"):
    device = rows.device.type
    with torch.autocast(device, enabled=False):
        dtype = torch.get_autocast_dtype(device)
        cast = (t if t is None else t.to(dtype) for t in (rows, *weights))
        return torch.ops.diffratio.mlp(*cast, implementation=implementation)


define(
    "mlp(Tensor rows, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, *, "
    'str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
    autocast=_autocast,
)
define(
    "linear_gelu(Tensor rows, Tensor weight, Tensor? bias) -> (Tensor, Tensor)",
    kernel=lambda rows, weight, bias: triton.linear_gelu(rows, weight, bias, True),
    fake=lambda rows, weight, bias: (
        rows.new_empty(rows.shape[0], weight.shape[0]), rows.new_empty(rows.shape[0], weight.shape[0])
    ),
)  # fmt: skip
define_backward(
    "linear_gelu_backward(Tensor grad, Tensor weight, Tensor pre, *, str implementation) -> (Tensor, Tensor)",
    lambda grad, weight, pre, *, implementation: (pre.new_empty(pre.shape), pre.new_empty(pre.shape)),
)


def mlp(
    rows: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    implementation: str = "auto",
) -> Tensor:
    """fc2(gelu(fc1(rows))) with the tanh GELU.

    Args:
        rows: [T, D].
        fc1_weight, fc1_bias: [F, D] and [F] or None, in the dtype of rows.
        fc2_weight, fc2_bias: [D, F] and [D] or None, in the dtype of rows.
        implementation: "auto", "cublaslt" (fp16 and bf16; needs fc1_bias, gives no gradient), "triton" or
            "torch".

    Returns:
        [T, D].

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.mlp(
        rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias, implementation=implementation
    )
