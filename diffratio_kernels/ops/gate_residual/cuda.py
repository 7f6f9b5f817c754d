"""`gate_residual` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import PackedRows, RowNorm
from .. import cuda
from ..branch_norm import gradients
from ..cuda import RowSums, fp32_rows, groups_of, norm_of, row_map_of, stream


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
    out = hidden if in_place else torch.empty_like(hidden)
    cuda.operators.gate_residual(
        hidden, branch.to(hidden.dtype).contiguous(), fp32_rows(gate), rows.index.contiguous(), rows.tokens,
        groups_of(rows), *norm_of(norm), out, stream(hidden),
    )  # fmt: skip
    return out


def gate_residual_backward(
    grad_out: Tensor, branch: Tensor, gate: Tensor, rows: PackedRows, norm: RowNorm | None = None
) -> tuple[Tensor | None, ...]:
    """As the CPU kernels' `gate_residual_backward`."""
    owners, width = gate.shape
    grad_branch = torch.empty(branch.shape, dtype=branch.dtype, device=branch.device)
    sums = RowSums(branch, 1 if norm is None else 2, rows, owners, width)
    stats = None if norm is None else sums.sums.new_empty(branch.shape[0], 2)
    cuda.operators.gate_residual_backward(
        grad_out.contiguous(), branch.contiguous(), fp32_rows(gate), rows.index.contiguous(),
        row_map_of(rows, sums.count), rows.tokens, *sums.places(), *norm_of(norm), grad_branch, stats,
        sums.partial, sums.sums, stream(branch),
    )  # fmt: skip
    plain = None if norm is None else sums.sums[1]
    return grad_branch, *gradients(gate, norm, sums.sums[0], plain)
