"""`scatter_rescale`: finish the kept rows, rescale by the router score, scatter them into a copy of x."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import RESCALE, Check
from ..._register import Operator, empty_gradients, like_first, register
from ...types import Finish, PackedRows, Rescale, Run
from . import reference


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


def _bundled(x, index, hidden, branch, gate, logits, rescale, score_scale):
    """The arguments as backends take them."""
    rows, how = PackedRows(index, x.shape[1]), Rescale(rescale, score_scale)
    return Finish(x, rows, hidden, branch, gate, logits, how)


def _launcher(backend, *arguments):
    return kernels("scatter_rescale", backend).scatter_rescale, (_bundled(*arguments),)


def _gradients(backend, kept, grad_out):
    grads = torch.ops.diffratio.scatter_rescale_backward(grad_out, *kept, backend=backend)
    return dict(zip(("x", "hidden", "branch", "gate", "logits"), grads, strict=True))


def _backward(grad_out, *arguments, backend):
    return kernels("scatter_rescale", backend).scatter_rescale_backward(grad_out, _bundled(*arguments))


def _in_place(x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, backend="auto"):
    arguments = x, index, hidden, branch, gate, logits, rescale, score_scale
    _check(*arguments)
    chosen = choose("scatter_rescale", backend, x.device, x.dtype)
    module, bundled = kernels("scatter_rescale", chosen), _bundled(*arguments)
    if chosen in ("cuda", "triton") and x.is_contiguous():
        module.scatter_rescale_(bundled)
    else:
        x.copy_(module.scatter_rescale(bundled))


def _refuse_gradients(*args, **kwargs):
    raise NotImplementedError("scatter_rescale_: no gradients through x in place; use scatter_rescale")


def _fake_in_place(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *, backend="auto"
):  # fmt: skip
    _check(x, index, hidden, branch, gate, logits, rescale, score_scale)


def _fake_backward(grad_out, x, index, hidden, branch, gate, logits, *_, backend):
    return empty_gradients(x, hidden, branch, wide=(gate, logits))


_KEPT = "Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
_HOW = 'str rescale="mlp", float score_scale=1.0, *, str backend="auto"'
Operator(
    f"scatter_rescale(Tensor x, {_KEPT}{_HOW}) -> Tensor",
    check=_check,
    launcher=_launcher,
    fake=like_first,
    gradients=_gradients,
    cast=("hidden", "branch"),
    cast_like="x",
)
register(
    f"scatter_rescale_(Tensor(a!) x, {_KEPT}{_HOW}) -> ()",
    kernel=_in_place,
    fake=_fake_in_place,
    differentiable=_refuse_gradients,
)
register(
    f"scatter_rescale_backward(Tensor grad_out, Tensor x, {_KEPT}str rescale, float score_scale, *, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_backward,
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
    if rows.groups is not None:
        return reference.scatter_rescale(Finish(x, rows, hidden, branch, gate, logits, rescale))
    if run.direct:
        module = kernels("scatter_rescale", run.rows)
        return module.scatter_rescale(Finish(x, rows, hidden, branch, gate, logits, rescale))
    how = rescale.mode, rescale.score_scale
    operands = x, rows.index, hidden, branch, gate, logits
    return torch.ops.diffratio.scatter_rescale(*operands, *how, backend=run.rows)
