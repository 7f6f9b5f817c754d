"""`scatter_rescale`: finish the kept rows, rescale by the router score, put them back."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..kernels import native
from .dispatch import choose
from .library import define
from .validate import RESCALE, Check


class _DifferentiableNative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, hidden, branch, gate, logits, rescale, score_scale):
        ctx.save_for_backward(x, index, hidden, branch, gate, logits)
        ctx.options = (rescale, score_scale)
        return torch.ops.diffratio.scatter_rescale(
            x, index, hidden, branch, gate, logits, rescale, score_scale, implementation="native"
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        x, index, hidden, branch, gate, logits = ctx.saved_tensors
        grad_x, grad_hidden, grad_branch, grad_gate, grad_logits = (
            torch.ops.diffratio.scatter_rescale_backward(
                grad_out, x, index, hidden, branch, gate, logits, *ctx.options
            )
        )
        return (
            grad_x, None, grad_hidden, grad_branch,
            grad_gate.to(gate.dtype), grad_logits.to(logits.dtype), None, None,
        )  # fmt: skip


KERNELS = {"native": native.scatter_rescale, "reference": reference.scatter_rescale}
DIFFERENTIABLE = {"native": _DifferentiableNative.apply, "reference": reference.scatter_rescale}


def _check(x, index, hidden, branch, gate, logits, rescale, score_scale):
    check = Check("scatter_rescale")
    check.tensor("x", x, "B N D")
    check.index(index, x.shape[0] * x.shape[1])
    check.tensor("hidden", hidden, "T D", dtype_of=("x", x))
    check.tensor("branch", branch, "T D", dtype_of=("x", x))
    check.tensor("gate", gate, "B D")
    check.tensor("logits", logits, "B N")
    check.choice("rescale", rescale, RESCALE)
    check.positive("score_scale", score_scale)


def _run(table):
    def run(x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, implementation="auto"):
        _check(x, index, hidden, branch, gate, logits, rescale, score_scale)
        kernel = table[choose("scatter_rescale", implementation, x.device)]
        return kernel(x, index, hidden, branch, gate, logits, rescale, score_scale)

    return run


def _fake(x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, implementation="auto"):
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)
    return x.new_empty(x.shape)


def _fake_backward(grad_out, x, index, hidden, branch, gate, logits, rescale, score_scale):
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(x.shape),
        hidden.new_empty(hidden.shape),
        branch.new_empty(branch.shape),
        gate.new_empty(gate.shape, dtype=dtype),
        logits.new_empty(logits.shape, dtype=dtype),
    )


def _autocast(x, index, hidden, branch, *args, **kwargs):
    with torch.autocast(x.device.type, enabled=False):
        return torch.ops.diffratio.scatter_rescale(
            x, index, hidden.to(x.dtype), branch.to(x.dtype), *args, **kwargs
        )


define(
    "scatter_rescale(Tensor x, Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
    'str rescale="mlp", float score_scale=1.0, *, str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
    autocast=_autocast,
)
define(
    "scatter_rescale_backward(Tensor grad_out, Tensor x, Tensor index, Tensor hidden, Tensor branch, "
    "Tensor gate, Tensor logits, str rescale, float score_scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=native.scatter_rescale_backward,
    fake=_fake_backward,
)


def scatter_rescale(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str = "mlp",
    score_scale: float = 1.0,
    *,
    implementation: str = "auto",
) -> Tensor:
    """A copy of x [B, N, D] in which the kept rows are finished; rows not kept come back bit-equal.

    hidden, branch [T, D]: residual stream and MLP output of the kept rows; index [T] int64; gate [B, D];
    logits [B, N]. With s = score_scale * sigmoid(logit) and y = hidden + gate * branch, a kept row becomes
    "mlp": hidden + s * gate * branch (the authors' code); "residual": x + s * (y - x) (Mixture-of-Depths
    eq. 1); "output": s * y (the paper's text); "none": y.
    """
    return torch.ops.diffratio.scatter_rescale(
        x, index, hidden, branch, gate, logits, rescale, score_scale, implementation=implementation
    )
