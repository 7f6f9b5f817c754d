"""`gate_residual` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import PackedRows, RowNorm
from ..branch_norm import gradients
from ..cpu import GateSums, accumulation, groups_of, native, norm_of


def gate_residual(
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    rows: PackedRows,
    norm: RowNorm | None = None,
    in_place: bool = False,
) -> Tensor:
    """hidden + gate * norm(branch) [T, D]; in_place writes it to `hidden`, which must be contiguous."""
    hidden = hidden.contiguous()
    out = hidden if in_place else torch.empty(hidden.shape, dtype=hidden.dtype)
    native.gate_residual(
        hidden, branch.to(hidden.dtype).contiguous(), accumulation(gate, hidden), rows.index.contiguous(),
        rows.tokens, groups_of(rows), *norm_of(norm, hidden), out,
    )  # fmt: skip
    return out


def gate_residual_backward(
    grad_out: Tensor, branch: Tensor, gate: Tensor, rows: PackedRows, norm: RowNorm | None = None
) -> tuple[Tensor | None, ...]:
    """Gradients of branch [T, D] in its dtype, of gate [B or G, D] and of the norm's weight and bias [D] in
    fp32 or fp64; that of hidden is grad_out."""
    grad_branch, sums = torch.empty(branch.shape, dtype=branch.dtype), GateSums(gate, branch, norm)
    native.gate_residual_backward(
        grad_out.contiguous(), branch.contiguous(), accumulation(gate, branch), rows.index.contiguous(),
        rows.tokens, groups_of(rows), *norm_of(norm, branch), grad_branch, *sums.outputs(),
    )  # fmt: skip
    return grad_branch, *gradients(gate, norm, sums.normed, sums.plain)
