"""`gate_residual`: the end of the attention branch, hidden + gate * branch."""

import torch
from torch import Tensor

from ..._backends import kernels
from ..._checks import Check
from ..._register import Operator, empty_gradients, like_first, register
from ...types import PackedRows, Run
from ..attention.sdpa import runs
from . import reference


def _check(hidden, branch, gate, index, tokens):
    check = Check("gate_residual")
    check.tensor("hidden", hidden, "T D")
    check.tensor("branch", branch, "T D", dtype_of=("hidden", hidden))
    check.tensor("gate", gate, "B D")
    if tokens < 1:
        check.fail(f"tokens={tokens} must be positive")
    check.index(index, gate.shape[0] * tokens)


def _launcher(backend, hidden, branch, gate, index, tokens):
    return kernels("gate_residual", backend).gate_residual, (hidden, branch, gate, PackedRows(index, tokens))


def _gradients(backend, kept, grad_out):
    grads = torch.ops.diffratio.gate_residual_backward(grad_out, *kept, backend=backend)
    return dict(zip(("hidden", "branch", "gate"), (grad_out, *grads), strict=True))


def _backward(grad_out, branch, gate, index, tokens, *, backend):
    backward = kernels("gate_residual", backend).gate_residual_backward
    return backward(grad_out, branch, gate, PackedRows(index, tokens))


def _fake_backward(grad_out, branch, gate, index, tokens, *, backend):
    return empty_gradients(branch, wide=(gate,))


Operator(
    "gate_residual(Tensor hidden, Tensor branch, Tensor gate, Tensor index, SymInt tokens, *, "
    'str backend="auto") -> Tensor',
    check=_check,
    launcher=_launcher,
    fake=like_first,
    gradients=_gradients,
    kept=("branch", "gate", "index", "tokens"),
    cast=("branch",),
    cast_like="hidden",
)
register(
    "gate_residual_backward(Tensor grad_out, Tensor branch, Tensor gate, Tensor index, SymInt tokens, *, "
    "str backend) -> (Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def gate_residual(
    hidden: Tensor, branch: Tensor, gate: Tensor, index: Tensor, tokens: int, *, backend: str = "auto"
) -> Tensor:
    """hidden + gate * branch for packed rows: the end of a branch.

    Args:
        hidden: the residual stream [T, D].
        branch: [T, D] in the dtype of hidden.
        gate: [B, D], any float dtype; the sum is fp32 with one rounding.
        index: int64 [T]; row t belongs to sample index[t] // tokens.
        tokens: N of a sample.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, D] in the dtype of hidden.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> hidden = gate_residual(hidden, branch, gate, index, N)
    """
    return torch.ops.diffratio.gate_residual(hidden, branch, gate, index, tokens, backend=backend)


def run_gate_residual(
    run: Run, hidden: Tensor, branch: Tensor, gate: Tensor | None, rows: PackedRows
) -> Tensor:
    """hidden + gate * branch [T, D] with each sample's own gate [B, D], without a gate hidden + branch."""
    if gate is None:
        return hidden.add_(branch) if run.direct else (hidden + branch).to(hidden.dtype)
    if rows.groups is not None:
        return reference.gate_residual(hidden, branch, gate, rows)
    if run.gate != "triton":
        return _add_gated(hidden, branch, gate, rows.counts, rows.uniform, run.direct)
    if run.direct:
        return kernels("gate_residual", "triton").gate_residual(hidden, branch, gate, rows, in_place=True)
    branch = branch.to(hidden.dtype)
    return torch.ops.diffratio.gate_residual(hidden, branch, gate, rows.index, rows.tokens, backend="triton")


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
