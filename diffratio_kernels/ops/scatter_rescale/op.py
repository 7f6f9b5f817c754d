"""`scatter_rescale`: finish the kept rows, rescale by the router score, scatter them into a copy of x."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import RESCALE, Check
from ..._register import Operator, empty_gradients, like_first, register
from ...types import Finish, PackedRows, Rescale, RowNorm, Run
from ..branch_norm import SCHEMA, VECTORS, bundled, check_norm, flat, named, without_none


def _check(
    x, index, hidden, branch, gate, logits, rescale, score_scale, groups, norm, norm_weight, norm_bias,
    norm_eps,
):  # fmt: skip
    check = Check("scatter_rescale")
    check.tensor("x", x, "B N D")
    check.index(index, x.shape[0] * x.shape[1])
    check.tensor("hidden", hidden, "T D", dtype_of=("x", x))
    check.tensor("branch", branch, "T D", dtype_of=("x", x))
    check.tensor("gate", gate, "B D" if groups is None else "G D")
    check.groups(groups, gate.shape[0], x.shape[1])
    check.tensor("logits", logits, "B N")
    check.choice("rescale", rescale, RESCALE)
    check.positive("score_scale", score_scale)
    check_norm(check, norm, norm_weight, norm_bias, norm_eps)


def _bundled(x, index, hidden, branch, gate, logits, rescale, score_scale, groups, *norm):
    """The arguments as backends take them."""
    rows, how = PackedRows(index, x.shape[1], groups=groups), Rescale(rescale, score_scale)
    return Finish(x, rows, hidden, branch, gate, logits, how, bundled(*norm))


def _launcher(backend, *arguments):
    return kernels("scatter_rescale", backend).scatter_rescale, (_bundled(*arguments),)


def _gradients(backend, kept, grad_out):
    found = torch.ops.diffratio.scatter_rescale_backward(grad_out, *kept, backend=backend)
    names = ("x", "hidden", "branch", "gate", "logits", *VECTORS)
    return named(names, (*kept[:1], *kept[2:6], *kept[10:12]), found)


def _backward(grad_out, *arguments, backend):
    found = kernels("scatter_rescale", backend).scatter_rescale_backward(grad_out, _bundled(*arguments))
    return without_none(found)


def _in_place(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *,
    groups=None, norm="none", norm_weight=None, norm_bias=None, norm_eps=1e-6, backend="auto",
):  # fmt: skip
    how = rescale, score_scale, groups, norm, norm_weight, norm_bias, norm_eps
    arguments = x, index, hidden, branch, gate, logits, *how
    _check(*arguments)
    chosen = choose("scatter_rescale", backend, x.device, x.dtype)
    module, given = kernels("scatter_rescale", chosen), _bundled(*arguments)
    if chosen in ("cuda", "triton") and x.is_contiguous():
        module.scatter_rescale_(given)
    else:
        x.copy_(module.scatter_rescale(given))


def _refuse_gradients(*args, **kwargs):
    raise NotImplementedError("scatter_rescale_: no gradients through x in place; use scatter_rescale")


def _fake_in_place(
    x, index, hidden, branch, gate, logits, rescale="mlp", score_scale=1.0, *,
    groups=None, norm="none", norm_weight=None, norm_bias=None, norm_eps=1e-6, backend="auto",
):  # fmt: skip
    how = rescale, score_scale, groups, norm, norm_weight, norm_bias, norm_eps
    _check(x, index, hidden, branch, gate, logits, *how)


def _fake_backward(
    grad_out, x, index, hidden, branch, gate, logits, rescale, score_scale, groups, norm, norm_weight,
    norm_bias, norm_eps, *, backend,
):  # fmt: skip
    vectors = (grad_out.new_empty(0) if t is None else t for t in (norm_weight, norm_bias))
    return empty_gradients(x, hidden, branch, wide=(gate, logits, *vectors))


_KEPT = "Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
_HOW = f'str rescale="mlp", float score_scale=1.0, *, Tensor? groups=None, {SCHEMA}, str backend="auto"'
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
    f"scatter_rescale_backward(Tensor grad_out, Tensor x, {_KEPT}str rescale, float score_scale, "
    "Tensor? groups, str norm, Tensor? norm_weight, Tensor? norm_bias, float norm_eps, *, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
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
    groups: Tensor | None = None,
    norm: str = "none",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    backend: str = "auto",
) -> None:
    """`scatter_rescale` into x itself.

    On a GPU only the kept rows of a contiguous x are read and written; elsewhere a result is copied into x.

    Args:
        x: tokens [B, N, D], overwritten.
        index, hidden, branch, gate, logits, rescale, score_scale: as in `scatter_rescale`.
        groups, norm, norm_weight, norm_bias, norm_eps, backend: the same.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.
        NotImplementedError: a gradient is wanted.

    Example:
        >>> scatter_rescale_(x, index, hidden, branch, gate, logits, score_scale=2.0)
    """
    torch.ops.diffratio.scatter_rescale_(
        x, index, hidden, branch, gate, logits, rescale, score_scale, groups=groups, norm=norm,
        norm_weight=norm_weight, norm_bias=norm_bias, norm_eps=norm_eps, backend=backend,
    )  # fmt: skip


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
    groups: Tensor | None = None,
    norm: str = "none",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 1e-6,
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
        gate: [B, D], with groups [G, D], any float dtype.
        logits: [B, N], of `route`.
        rescale: "mlp", "residual", "output" or "none", as above.
        score_scale: 2.0 for routers that start as the identity, 1.0 for the authors' (see `mod_block`).
        groups: int64 [B, N], which row of gate belongs to each token; None: that of its sample.
        norm: of the branch, before its gate: "rms", "layer" or "none"; in fp32.
        norm_weight, norm_bias: [D], any float dtype; None: 1 and 0.
        norm_eps: of the norm.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> out = scatter_rescale(x, index, hidden, branch, gate, logits, score_scale=2.0)
    """
    return torch.ops.diffratio.scatter_rescale(
        x, index, hidden, branch, gate, logits, rescale, score_scale, groups=groups, norm=norm,
        norm_weight=norm_weight, norm_bias=norm_bias, norm_eps=norm_eps, backend=backend,
    )  # fmt: skip


def run_scatter_rescale(
    run: Run,
    x: Tensor,
    rows: PackedRows,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    scores: tuple[Tensor, Rescale],
    norm: RowNorm | None = None,
) -> Tensor:
    """`scatter_rescale` as blocks run it; scores: logits [B, N] and what they multiply."""
    logits, rescale = scores
    branch = branch.to(x.dtype)
    if run.direct:
        module = kernels("scatter_rescale", run.rows)
        return module.scatter_rescale(Finish(x, rows, hidden, branch, gate, logits, rescale, norm))
    how = rescale.mode, rescale.score_scale
    operands = x, rows.index, hidden, branch, gate, logits
    return torch.ops.diffratio.scatter_rescale(
        *operands, *how, groups=rows.groups, **flat(norm), backend=run.rows
    )
