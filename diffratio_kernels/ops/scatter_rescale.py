"""`scatter_rescale`: finish the kept rows, rescale by the router score, put them back."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import reference
from .dispatch import DIFFERENTIABLE, KERNELS, ROW_KERNELS, choose
from .library import define, define_backward
from .validate import RESCALE, Check


class _ScatterRescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, x, index, hidden, branch, gate, logits, rescale, score_scale):
        ctx.save_for_backward(x, index, hidden, branch, gate, logits)
        ctx.options, ctx.implementation = (rescale, score_scale), implementation
        return torch.ops.diffratio.scatter_rescale(
            x, index, hidden, branch, gate, logits, rescale, score_scale, implementation=implementation
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        x, index, hidden, branch, gate, logits = ctx.saved_tensors
        grad_x, grad_hidden, grad_branch, grad_gate, grad_logits = (
            torch.ops.diffratio.scatter_rescale_backward(
                grad_out,
                x,
                index,
                hidden,
                branch,
                gate,
                logits,
                *ctx.options,
                implementation=ctx.implementation,
            )
        )
        return (
            None, grad_x, None, grad_hidden, grad_branch,
            grad_gate.to(gate.dtype), grad_logits.to(logits.dtype), None, None,
        )  # fmt: skip


KERNELS["scatter_rescale"] = {name: kernels.scatter_rescale for name, kernels in ROW_KERNELS.items()}
DIFFERENTIABLE["scatter_rescale"] = {name: partial(_ScatterRescale.apply, name) for name in ROW_KERNELS}
for _table in (KERNELS, DIFFERENTIABLE):
    _table["scatter_rescale"]["reference"] = reference.scatter_rescale


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
        kernel = table["scatter_rescale"][choose("scatter_rescale", implementation, x.device, x.dtype)]
        return kernel(x, index, hidden, branch, gate, logits, rescale, score_scale)

    return run


def _run_in_place(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, implementation="auto"
):  # fmt: skip
    args = index, hidden, branch, gate, logits, rescale, score_scale
    _check(x, *args)
    chosen = choose("scatter_rescale", implementation, x.device, x.dtype)
    if chosen in ("cuda", "triton") and x.is_contiguous():
        ROW_KERNELS[chosen].scatter_rescale(x, *args, in_place=True)
    else:
        x.copy_(KERNELS["scatter_rescale"][chosen](x, *args))


def _fake_in_place(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, implementation="auto"
):  # fmt: skip
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)


def _refuse_gradients(*args, **kwargs):
    raise NotImplementedError("scatter_rescale_: no gradients through x in place; use scatter_rescale")


def _fake(x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, implementation="auto"):
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)
    return x.new_empty(x.shape)


def _fake_backward(
    grad_out, x, index, hidden, branch, gate, logits, rescale, score_scale, *, implementation
):  # fmt: skip
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
    "scatter_rescale_(Tensor(a!) x, Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
    'str rescale="mlp", float score_scale=1.0, *, str implementation="auto") -> ()',
    kernel=_run_in_place,
    fake=_fake_in_place,
    differentiable=_refuse_gradients,
)
define_backward(
    "scatter_rescale_backward(Tensor grad_out, Tensor x, Tensor index, Tensor hidden, Tensor branch, "
    "Tensor gate, Tensor logits, str rescale, float score_scale, *, str implementation) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
)


def scatter_rescale_(x: Tensor, index: Tensor, hidden: Tensor, *args, **kwargs) -> None:
    """`scatter_rescale` into x [B, N, D] itself: only the kept rows are read and written. No gradients."""
    torch.ops.diffratio.scatter_rescale_(x, index, hidden, *args, **kwargs)


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
