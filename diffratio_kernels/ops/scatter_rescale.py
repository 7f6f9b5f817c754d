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


def scatter_rescale_(
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
) -> None:
    """`scatter_rescale` into x itself: only the kept rows are read and written.

    Args:
        x: tokens [B, N, D], overwritten.
        index, hidden, branch, gate, logits, rescale, score_scale, implementation: as in `scatter_rescale`.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
        NotImplementedError: a gradient is wanted.
    """
    torch.ops.diffratio.scatter_rescale_(
        x, index, hidden, branch, gate, logits, rescale, score_scale, implementation=implementation
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
    """A copy of x in which the kept rows are finished; rows not kept come back bit-equal.

    With s = score_scale * sigmoid(logit) and y = hidden + gate * branch, a kept row becomes
    "mlp": hidden + s * gate * branch (the authors' code); "residual": x + s * (y - x) (Mixture-of-Depths
    eq. 1); "output": s * y (the paper's text); "none": y.

    Args:
        x: tokens [B, N, D].
        index: int64 [T], the kept rows of the flattened [B*N].
        hidden, branch: residual stream and MLP output of the kept rows, [T, D].
        gate: [B, D], any float dtype.
        logits: [B, N], of `route`.
        rescale: "mlp", "residual", "output" or "none", as above.
        score_scale: 2.0 for routers that start as the identity, 1.0 for the authors' (see `mod_block`).
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.scatter_rescale(
        x, index, hidden, branch, gate, logits, rescale, score_scale, implementation=implementation
    )
