"""`gate_residual`: the end of the attention branch, hidden + gate * branch, normed or as it is."""

import torch
from torch import Tensor

from ..._backends import kernels
from ..._checks import Check
from ..._register import Operator, empty_gradients, like_first, register
from ...types import PackedRows, RowNorm, Run
from ..attention.sdpa import runs
from ..branch_norm import SCHEMA, VECTORS, bundled, check_norm, flat, named, without_none


def _check(hidden, branch, gate, index, tokens, groups, norm, norm_weight, norm_bias, norm_eps):
    check = Check("gate_residual")
    check.tensor("hidden", hidden, "T D")
    check.tensor("branch", branch, "T D", dtype_of=("hidden", hidden))
    check.tensor("gate", gate, "B D" if groups is None else "G D")
    if tokens < 1:
        check.fail(f"tokens={tokens} must be positive")
    check.groups(groups, gate.shape[0], tokens)
    check.index(index, (gate.shape[0] if groups is None else groups.shape[0]) * tokens)
    check_norm(check, norm, norm_weight, norm_bias, norm_eps)


def _launcher(backend, hidden, branch, gate, index, tokens, groups, *norm):
    rows = PackedRows(index, tokens, groups=groups)
    return kernels("gate_residual", backend).gate_residual, (hidden, branch, gate, rows, bundled(*norm))


def _gradients(backend, kept, grad_out):
    found = torch.ops.diffratio.gate_residual_backward(grad_out, *kept, backend=backend)
    return {"hidden": grad_out} | named(("branch", "gate", *VECTORS), (*kept[:2], *kept[6:8]), found)


def _backward(grad_out, branch, gate, index, tokens, groups, *norm, backend):
    rows = PackedRows(index, tokens, groups=groups)
    backward = kernels("gate_residual", backend).gate_residual_backward
    return without_none(backward(grad_out, branch, gate, rows, bundled(*norm)))


def _fake_backward(
    grad_out, branch, gate, index, tokens, groups, norm, norm_weight, norm_bias, norm_eps, *, backend
):  # fmt: skip
    vectors = (grad_out.new_empty(0) if t is None else t for t in (norm_weight, norm_bias))
    return empty_gradients(branch, wide=(gate, *vectors))


Operator(
    "gate_residual(Tensor hidden, Tensor branch, Tensor gate, Tensor index, SymInt tokens, *, "
    f'Tensor? groups=None, {SCHEMA}, str backend="auto") -> Tensor',
    check=_check,
    launcher=_launcher,
    fake=like_first,
    gradients=_gradients,
    kept=("branch", "gate", "index", "tokens", "groups", "norm", "norm_weight", "norm_bias", "norm_eps"),
    cast=("branch",),
    cast_like="hidden",
)
register(
    "gate_residual_backward(Tensor grad_out, Tensor branch, Tensor gate, Tensor index, SymInt tokens, "
    "Tensor? groups, str norm, Tensor? norm_weight, Tensor? norm_bias, float norm_eps, *, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def gate_residual(
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    index: Tensor,
    tokens: int,
    *,
    groups: Tensor | None = None,
    norm: str = "none",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """hidden + gate * norm(branch) for packed rows: the end of a branch.

    Args:
        hidden: the residual stream [T, D].
        branch: [T, D] in the dtype of hidden.
        gate: [B, D], with groups [G, D], any float dtype; the sum is fp32 with one rounding.
        index: int64 [T]; row t belongs to sample index[t] // tokens.
        tokens: N of a sample.
        groups: int64 [B, N], which row of gate belongs to each token; None: that of its sample.
        norm: of the branch: "rms", "layer" or "none"; statistics and result are fp32.
        norm_weight, norm_bias: [D], any float dtype; None: 1 and 0.
        norm_eps: of the norm.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, D] in the dtype of hidden.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> hidden = gate_residual(hidden, branch, gate, index, N)
    """
    return torch.ops.diffratio.gate_residual(
        hidden, branch, gate, index, tokens, groups=groups, norm=norm, norm_weight=norm_weight,
        norm_bias=norm_bias, norm_eps=norm_eps, backend=backend,
    )  # fmt: skip


def run_gate_residual(
    run: Run,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    rows: PackedRows,
    norm: RowNorm | None = None,
) -> Tensor:
    """hidden + gate * norm(branch) [T, D] with each row's own gate, [B, D] or with groups [G, D]; without a
    gate hidden + norm(branch)."""
    if gate is None:
        branch = branch if norm is None else norm(branch)
        return hidden.add_(branch) if run.direct else (hidden + branch).to(hidden.dtype)
    if run.rows in ("cpu", "reference") and rows.groups is None and norm is None:
        return _add_gated(hidden, branch, gate, rows.counts, rows.uniform, run.direct)
    if run.direct and run.rows != "reference":
        module = kernels("gate_residual", run.rows)
        return module.gate_residual(hidden, branch, gate, rows, norm, in_place=True)
    operands = hidden, branch.to(hidden.dtype), gate, rows.index, rows.tokens
    return torch.ops.diffratio.gate_residual(*operands, groups=rows.groups, **flat(norm), backend=run.rows)


def _add_gated(
    hidden: Tensor, branch: Tensor, gate: Tensor, counts: list[int], uniform: int | None, in_place: bool
) -> Tensor:
    """By torch, samples of equal counts together: without a [T, D] copy of the gate."""
    if uniform is None:
        alike = runs(counts)
        sizes = [n * counts[first] for first, n in alike]
        done = []
        for (first, n), some, updates in zip(alike, hidden.split(sizes), branch.split(sizes), strict=True):
            done.append(_add_gated(some, updates, gate[first : first + n], [], counts[first], in_place))
        return hidden if in_place else torch.cat(done)
    shape = gate.shape[0], uniform, hidden.shape[1]
    if in_place:
        hidden.view(shape).addcmul_(gate[:, None], branch.view(shape))
        return hidden
    added = torch.addcmul(hidden.reshape(shape), gate[:, None], branch.reshape(shape))
    return added.to(hidden.dtype).flatten(0, 1)
