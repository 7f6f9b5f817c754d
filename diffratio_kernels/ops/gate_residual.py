"""`gate_residual`: the end of the attention branch, hidden + gate * branch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..kernels.triton import launchers as triton
from .dispatch import DIFFERENTIABLE, KERNELS, choose
from .library import define, define_backward
from .validate import Check


class _GateResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, branch, gate, index, tokens):
        ctx.save_for_backward(branch, gate, index)
        ctx.tokens = tokens
        return torch.ops.diffratio.gate_residual(hidden, branch, gate, index, tokens, implementation="triton")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        branch, gate, index = ctx.saved_tensors
        grad_branch, grad_gate = torch.ops.diffratio.gate_residual_backward(
            grad_out, branch, gate, index, ctx.tokens, implementation="triton"
        )
        return grad_out, grad_branch, grad_gate.to(gate.dtype), None, None


KERNELS["gate_residual"] = {"triton": triton.gate_residual, "reference": reference.gate_residual}
DIFFERENTIABLE["gate_residual"] = {"triton": _GateResidual.apply, "reference": reference.gate_residual}


def _check(hidden, branch, gate, index, tokens):
    check = Check("gate_residual")
    check.tensor("hidden", hidden, "T D")
    check.tensor("branch", branch, "T D", dtype_of=("hidden", hidden))
    check.tensor("gate", gate, "B D")
    if tokens < 1:
        check.fail(f"tokens={tokens} must be positive")
    check.index(index, gate.shape[0] * tokens)


def _run(table):
    def run(hidden, branch, gate, index, tokens, *, implementation="auto"):
        _check(hidden, branch, gate, index, tokens)
        kernel = table["gate_residual"][choose("gate_residual", implementation, hidden.device, hidden.dtype)]
        return kernel(hidden, branch, gate, index, tokens)

    return run


def _fake(hidden, branch, gate, index, tokens, *, implementation="auto"):
    _check(hidden, branch, gate, index, tokens)
    return hidden.new_empty(hidden.shape)


def _fake_backward(grad_out, branch, gate, index, tokens, *, implementation):
    dtype = torch.promote_types(branch.dtype, torch.float32)
    return branch.new_empty(branch.shape), gate.new_empty(gate.shape, dtype=dtype)


def _autocast(hidden, branch, *args, **kwargs):
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.ops.diffratio.gate_residual(hidden, branch.to(hidden.dtype), *args, **kwargs)


define(
    "gate_residual(Tensor hidden, Tensor branch, Tensor gate, Tensor index, SymInt tokens, *, "
    'str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
    autocast=_autocast,
)
define_backward(
    "gate_residual_backward(Tensor grad_out, Tensor branch, Tensor gate, Tensor index, SymInt tokens, *, "
    "str implementation) -> (Tensor, Tensor)",
    _fake_backward,
)


def gate_residual(
    hidden: Tensor, branch: Tensor, gate: Tensor, index: Tensor, tokens: int, *, implementation: str = "auto"
) -> Tensor:
    """hidden + gate * branch for packed rows: the end of a branch.

    Args:
        hidden: the residual stream [T, D].
        branch: [T, D] in the dtype of hidden.
        gate: [B, D], any float dtype; the sum is fp32 with one rounding.
        index: int64 [T]; row t belongs to sample index[t] // tokens.
        tokens: N of a sample.
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, D] in the dtype of hidden.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.gate_residual(
        hidden, branch, gate, index, tokens, implementation=implementation
    )
