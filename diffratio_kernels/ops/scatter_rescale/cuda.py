"""`scatter_rescale` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import PackedRows, Rescale
from .. import cuda
from ..cuda import column_sums, fp32, fp32_rows, row_map_of, stream


def scatter_rescale(
    x: Tensor,
    rows: PackedRows,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: Rescale,
) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _run(x, out, None, row_map_of(rows, x.shape[:2].numel()), hidden, branch, gate, logits, rescale)
    return out


def scatter_rescale_(
    x: Tensor,
    rows: PackedRows,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: Rescale,
) -> None:
    """The same into x itself, which must be contiguous: only the kept rows are touched."""
    _run(x, x, rows.index.contiguous(), None, hidden, branch, gate, logits, rescale)


def _run(x, out, index, row_map, hidden, branch, gate, logits, rescale):
    cuda.operators.scatter_rescale(
        x, row_map, index, x.shape[1], hidden.contiguous(), branch.contiguous(), fp32_rows(gate),
        fp32(logits), rescale.mode, rescale.score_scale, out, stream(x),
    )  # fmt: skip


def scatter_rescale_backward(
    grad_out: Tensor,
    x: Tensor,
    rows: PackedRows,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: Rescale,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, hidden, branch, gate [B, D] and logits [B, N] (the last two fp32)."""
    batch, tokens, width = x.shape
    grad_x, grad_hidden, grad_branch = (
        torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in (x, hidden, branch)
    )
    grad_logits = torch.empty(logits.shape, dtype=torch.float32, device=x.device)
    partial, grad_gate = column_sums(x, 1, batch, tokens, width)
    cuda.operators.scatter_rescale_backward(
        grad_out.contiguous(), x.contiguous(), row_map_of(rows, batch * tokens), tokens,
        hidden.contiguous(), branch.contiguous(), fp32_rows(gate), fp32(logits), rescale.mode,
        rescale.score_scale, grad_x, grad_hidden, grad_branch, partial, grad_gate, grad_logits, stream(x),
    )  # fmt: skip
    return grad_x, grad_hidden, grad_branch, grad_gate[0], grad_logits
