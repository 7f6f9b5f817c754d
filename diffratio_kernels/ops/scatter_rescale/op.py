"""`scatter_rescale`: finish the kept rows, rescale by the router score, scatter them into a copy of x."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import RESCALE, Check
from ..._register import first_order, register
from ...types import PackedRows, Rescale, Run
from . import reference


class _ScatterRescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, x, index, hidden, branch, gate, logits, rescale, score_scale):
        ctx.save_for_backward(x, index, hidden, branch, gate, logits)
        ctx.options, ctx.backend = (rescale, score_scale), backend
        return torch.ops.diffratio.scatter_rescale(
            x, index, hidden, branch, gate, logits, rescale, score_scale, backend=backend
        )

    @staticmethod
    @first_order
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
                backend=ctx.backend,
            )
        )
        return (
            None, grad_x, None, grad_hidden, grad_branch,
            grad_gate.to(gate.dtype), grad_logits.to(logits.dtype), None, None,
        )  # fmt: skip


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


def _scatter_rescale(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, backend="auto"
):
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)
    chosen, how = choose("scatter_rescale", backend, x.device, x.dtype), Rescale(rescale, score_scale)
    rows = PackedRows(index, x.shape[1])
    if chosen != "reference":
        rows.row_map = kernels("route", chosen).row_map_of(index, x.shape[0] * x.shape[1])
    module = kernels("scatter_rescale", chosen)
    return module.scatter_rescale(x, rows, hidden, branch, gate, logits, how)


def _scatter_rescale_differentiable(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, backend="auto"
):
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)
    chosen = choose("scatter_rescale", backend, x.device, x.dtype)
    if chosen == "reference":
        rows, how = PackedRows(index, x.shape[1]), Rescale(rescale, score_scale)
        return reference.scatter_rescale(x, rows, hidden, branch, gate, logits, how)
    return _ScatterRescale.apply(chosen, x, index, hidden, branch, gate, logits, rescale, score_scale)


def _scatter_rescale_in_place(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, backend="auto"
):
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)
    rows, how = PackedRows(index, x.shape[1]), Rescale(rescale, score_scale)
    chosen = choose("scatter_rescale", backend, x.device, x.dtype)
    module = kernels("scatter_rescale", chosen)
    if chosen in ("cuda", "triton") and x.is_contiguous():
        module.scatter_rescale_(x, rows, hidden, branch, gate, logits, how)
    else:
        x.copy_(module.scatter_rescale(x, rows, hidden, branch, gate, logits, how))


def _scatter_rescale_backward(
    grad_out, x, index, hidden, branch, gate, logits, rescale, score_scale, *, backend
):
    rows, how = PackedRows(index, x.shape[1]), Rescale(rescale, score_scale)
    backward = kernels("scatter_rescale", backend).scatter_rescale_backward
    return backward(grad_out, x, rows, hidden, branch, gate, logits, how)


def _fake_in_place(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, backend="auto"
):  # fmt: skip
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)


def _refuse_gradients(*args, **kwargs):
    raise NotImplementedError("scatter_rescale_: no gradients through x in place; use scatter_rescale")


def _fake(x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, backend="auto"):
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)
    return x.new_empty(x.shape)


def _fake_backward(
    grad_out, x, index, hidden, branch, gate, logits, rescale, score_scale, *, backend
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


register(
    "scatter_rescale(Tensor x, Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
    'str rescale="mlp", float score_scale=1.0, *, str backend="auto") -> Tensor',
    kernel=_scatter_rescale,
    fake=_fake,
    differentiable=_scatter_rescale_differentiable,
    autocast=_autocast,
)
register(
    "scatter_rescale_(Tensor(a!) x, Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
    'str rescale="mlp", float score_scale=1.0, *, str backend="auto") -> ()',
    kernel=_scatter_rescale_in_place,
    fake=_fake_in_place,
    differentiable=_refuse_gradients,
)
register(
    "scatter_rescale_backward(Tensor grad_out, Tensor x, Tensor index, Tensor hidden, Tensor branch, "
    "Tensor gate, Tensor logits, str rescale, float score_scale, *, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_scatter_rescale_backward,
    fake=_fake_backward,
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
    backend: str = "auto",
) -> None:
    """`scatter_rescale` into x itself.

    On a GPU only the kept rows of a contiguous x are read and written; elsewhere a result is copied into x.

    Args:
        x: tokens [B, N, D], overwritten.
        index, hidden, branch, gate, logits, rescale, score_scale, backend: as in `scatter_rescale`.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.
        NotImplementedError: a gradient is wanted.

    Example:
        >>> scatter_rescale_(x, index, hidden, branch, gate, logits, score_scale=2.0)
    """
    torch.ops.diffratio.scatter_rescale_(
        x, index, hidden, branch, gate, logits, rescale, score_scale, backend=backend
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
    backend: str = "auto",
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
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> out = scatter_rescale(x, index, hidden, branch, gate, logits, score_scale=2.0)
    """
    return torch.ops.diffratio.scatter_rescale(
        x, index, hidden, branch, gate, logits, rescale, score_scale, backend=backend
    )


def run_scatter_rescale(
    run: Run, x: Tensor, rows: PackedRows, hidden: Tensor, branch: Tensor, gate: Tensor, scores
) -> Tensor:
    """`scatter_rescale` as blocks run it; scores: logits [B, N] and what they multiply."""
    logits, rescale = scores
    branch = branch.to(x.dtype)
    if run.direct:
        module = kernels("scatter_rescale", run.rows)
        return module.scatter_rescale(x, rows, hidden, branch, gate, logits, rescale)
    how = rescale.mode, rescale.score_scale
    operands = x, rows.index, hidden, branch, gate, logits
    return torch.ops.diffratio.scatter_rescale(*operands, *how, backend=run.rows)
