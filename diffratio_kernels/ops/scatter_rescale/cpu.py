"""`scatter_rescale` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import PackedRows, Rescale
from ..cpu import accumulation, native, row_map_of


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
    out = torch.empty(x.shape, dtype=x.dtype)
    native.scatter_rescale(
        x.contiguous(), row_map_of(rows, x.shape[:2].numel()), x.shape[1], hidden.contiguous(),
        branch.contiguous(), accumulation(gate, x), accumulation(logits, x), rescale.mode,
        rescale.score_scale, out,
    )  # fmt: skip
    return out


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
    """Gradients of x, hidden, branch, gate [B, D] and logits [B, N] (the last two in the logits' dtype)."""
    gate, logits = accumulation(gate, x), accumulation(logits, x)
    grad_x, grad_hidden, grad_branch = (torch.empty(t.shape, dtype=x.dtype) for t in (x, hidden, branch))
    grad_gate, grad_logits = torch.zeros_like(gate), torch.empty(logits.shape, dtype=logits.dtype)
    native.scatter_rescale_backward(
        grad_out.contiguous(), x.contiguous(), rows.index.contiguous(),
        row_map_of(rows, x.shape[:2].numel()), x.shape[1], hidden.contiguous(),
        branch.contiguous(), gate, logits, rescale.mode, rescale.score_scale,
        grad_x, grad_hidden, grad_branch, grad_gate, grad_logits,
    )  # fmt: skip
    return grad_x, grad_hidden, grad_branch, grad_gate, grad_logits
