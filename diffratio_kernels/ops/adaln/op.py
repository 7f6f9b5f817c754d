"""`gather_adaln` (kept rows of x, then adaLN) and `adaln` (rows that are packed already)."""

import torch
from torch import Tensor

from ..._backends import kernels
from ..._checks import Check
from ..._register import Operator, like_first, register
from ...types import PackedRows, Run

NORMS = ("layer", "rms")


def _check_gather(x, index, shift, scale, eps, norm, groups):
    check = Check("gather_adaln")
    check.tensor("x", x, "B N D")
    _check_modulation(check, x.shape[1], shift, scale, eps, norm, groups)
    check.index(index, x.shape[0] * x.shape[1])


def _check_adaln(rows, index, tokens, shift, scale, eps, norm, groups):
    check = Check("adaln")
    check.tensor("rows", rows, "T D")
    if tokens < 1:
        check.fail(f"tokens={tokens} must be positive")
    _check_modulation(check, tokens, shift, scale, eps, norm, groups)
    check.index(index, (shift.shape[0] if groups is None else groups.shape[0]) * tokens)


def _check_modulation(check, tokens, shift, scale, eps, norm, groups):
    check.tensor("shift", shift, "B D" if groups is None else "G D")
    check.tensor("scale", scale, "B D" if groups is None else "G D")
    check.groups(groups, shift.shape[0], tokens)
    check.positive("eps", eps)
    check.choice("norm", norm, NORMS)


def _gather_launcher(backend, x, index, shift, scale, eps, norm, groups):
    rows = PackedRows(index, x.shape[1], groups=groups)
    return kernels("adaln", backend).gather_adaln, (x, rows, shift, scale, eps, norm)


def _train_gather(backend, x, index, shift, scale, eps, norm, groups):
    rows, normed = torch.ops.diffratio.gather_adaln(
        x, index, shift, scale, eps, norm=norm, groups=groups, backend=backend
    )
    return (rows, normed), (rows, index, scale, eps, x.shape, norm, groups)


def _gather_gradients(backend, kept, grad_rows, grad_normed):
    rows, index, scale, eps, (batch, tokens, width), norm, groups = kept
    if grad_normed is None:
        grad_normed = torch.zeros_like(rows)
    grad_x, grad_shift, grad_scale = torch.ops.diffratio.adaln_backward(
        rows, index, tokens, scale, eps, grad_rows, grad_normed, batch * tokens, norm, groups, backend=backend
    )
    return {"x": grad_x.view(batch, tokens, width), "shift": grad_shift, "scale": grad_scale}


def _launcher(backend, rows, index, tokens, shift, scale, eps, norm, groups):
    packed = PackedRows(index, tokens, groups=groups)
    return kernels("adaln", backend).adaln, (rows, packed, shift, scale, eps, norm)


def _gradients(backend, kept, grad_normed):
    rows, index, tokens, _, scale, eps, norm, groups = kept
    grad_rows, grad_shift, grad_scale = torch.ops.diffratio.adaln_backward(
        rows, index, tokens, scale, eps, None, grad_normed, None, norm, groups, backend=backend
    )
    return {"rows": grad_rows, "shift": grad_shift, "scale": grad_scale}


def _backward(rows, index, tokens, scale, eps, grad_rows, grad_normed, x_rows, norm, groups, *, backend):
    packed = PackedRows(index, tokens, groups=groups)
    backward = kernels("adaln", backend).adaln_backward
    return backward(rows, packed, scale, eps, grad_rows, grad_normed, x_rows, norm)


def _fake_gather(x, index, *_):
    rows = x.new_empty(index.shape[0], x.shape[2])
    return rows, torch.empty_like(rows)


def _fake_backward(
    rows, index, tokens, scale, eps, grad_rows, grad_normed, x_rows, norm, groups, *, backend
):  # fmt: skip
    count = rows.shape[0] if x_rows is None else x_rows
    grad_scale = scale.new_empty(scale.shape, dtype=torch.promote_types(rows.dtype, torch.float32))
    return rows.new_empty(count, rows.shape[1]), grad_scale, torch.empty_like(grad_scale)


Operator(
    "gather_adaln(Tensor x, Tensor index, Tensor shift, Tensor scale, float eps=1e-6, *, "
    'str norm="layer", Tensor? groups=None, str backend="auto") -> (Tensor, Tensor)',
    check=_check_gather,
    launcher=_gather_launcher,
    fake=_fake_gather,
    gradients=_gather_gradients,
    train=_train_gather,
)
Operator(
    "adaln(Tensor rows, Tensor index, SymInt tokens, Tensor shift, Tensor scale, float eps=1e-6, *, "
    'str norm="layer", Tensor? groups=None, str backend="auto") -> Tensor',
    check=_check_adaln,
    launcher=_launcher,
    fake=like_first,
    gradients=_gradients,
)
register(
    "adaln_backward(Tensor rows, Tensor index, SymInt tokens, Tensor scale, float eps, Tensor? grad_rows, "
    "Tensor grad_normed, SymInt? x_rows, str norm, Tensor? groups, *, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def gather_adaln(
    x: Tensor,
    index: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    norm: str = "layer",
    groups: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The kept rows of x, and norm(rows) * (1 + scale) + shift with each row's own sample's modulation.

    Args:
        x: tokens [B, N, D]; statistics are computed in fp32 (fp64 for fp64).
        index: int64 [T], rows of the flattened [B*N], each at most once.
        shift, scale: [B, D], with groups [G, D], any float dtype.
        eps: of the norm.
        norm: "layer" or "rms", without weights: `(1 + scale) * weight - 1` in the place of scale has them.
        groups: int64 [B, N], which row of shift and scale belongs to each token; None: that of its sample.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        rows and normed, both [T, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> rows, normed = gather_adaln(x, index, shift, scale)
    """
    return torch.ops.diffratio.gather_adaln(
        x, index, shift, scale, eps, norm=norm, groups=groups, backend=backend
    )


def adaln(
    rows: Tensor,
    index: Tensor,
    tokens: int,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    norm: str = "layer",
    groups: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """norm(rows) * (1 + scale) + shift for rows that are packed already.

    Args:
        rows: [T, D].
        index: int64 [T]; row t belongs to sample index[t] // tokens.
        tokens: N of a sample.
        shift, scale: [B, D], with groups [G, D], any float dtype.
        eps: of the norm.
        norm, groups: as in `gather_adaln`.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, D] in the dtype of rows.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> normed = adaln(hidden, index, N, shift, scale)
    """
    return torch.ops.diffratio.adaln(
        rows, index, tokens, shift, scale, eps, norm=norm, groups=groups, backend=backend
    )


def run_gather_adaln(
    run: Run,
    x: Tensor,
    rows: PackedRows,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    norm: str = "layer",
    keep_rows: bool = True,
) -> tuple[Tensor, Tensor]:
    """`gather_adaln` as blocks run it: hidden and normed [T, D]. Without keep_rows hidden is x itself where a
    kernel can leave the rows out."""
    if not run.direct:
        return torch.ops.diffratio.gather_adaln(
            x, rows.index, shift, scale, eps, norm=norm, groups=rows.groups, backend=run.rows
        )
    module = kernels("adaln", run.rows)
    if not keep_rows and run.rows in ("cuda", "triton"):
        return x, module.gather_adaln(x, rows, shift, scale, eps, norm, keep_rows=False)[1]
    return module.gather_adaln(x, rows, shift, scale, eps, norm)


def run_adaln(
    run: Run, hidden: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, norm: str = "layer"
) -> Tensor:
    """`adaln` as blocks run it: hidden [T, D] -> [T, D]."""
    if run.direct:
        return kernels("adaln", run.rows).adaln(hidden, rows, shift, scale, eps, norm)
    return torch.ops.diffratio.adaln(
        hidden, rows.index, rows.tokens, shift, scale, eps, norm=norm, groups=rows.groups, backend=run.rows
    )
