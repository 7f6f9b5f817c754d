"""`two_bin_blend` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import PackedRows, Rescale
from ..cpu import accumulation, native, row_map_of, two_bins


def two_bin_blend(
    x: Tensor,
    rows: PackedRows,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: Rescale,
) -> Tensor:
    """A new [B, N, D]: kept rows blended from both bins, finished and rescaled, the others as in x.

    hidden [T + S, D] of both bins; branch [T, D].
    """
    out = torch.empty(x.shape, dtype=x.dtype)
    native.two_bin_blend(
        x.contiguous(), row_map_of(rows, x.shape[:2].numel()), x.shape[1], hidden.contiguous(),
        branch.contiguous(), accumulation(gate, x), accumulation(logits, x), *two_bins(rows.bins, x),
        rescale.mode, rescale.score_scale, out,
    )  # fmt: skip
    return out


def two_bin_blend_backward(
    grad_out: Tensor,
    x: Tensor,
    rows: PackedRows,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: Rescale,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, hidden [T + S, D], branch, gate and logits; that of weight_large row by row [T]."""
    gate, logits = accumulation(gate, x), accumulation(logits, x)
    grad_x, grad_hidden, grad_branch = (torch.empty(t.shape, dtype=x.dtype) for t in (x, hidden, branch))
    grad_gate, grad_logits = torch.zeros_like(gate), torch.empty(logits.shape, dtype=logits.dtype)
    weight_dots = torch.empty(rows.index.shape[0], dtype=logits.dtype)
    native.two_bin_blend_backward(
        grad_out.contiguous(), x.contiguous(), rows.index.contiguous(),
        row_map_of(rows, x.shape[:2].numel()), x.shape[1], hidden.contiguous(),
        branch.contiguous(), gate, logits, *two_bins(rows.bins, x), rescale.mode, rescale.score_scale,
        grad_x, grad_hidden, grad_branch, grad_gate, grad_logits, weight_dots,
    )  # fmt: skip
    return grad_x, grad_hidden, grad_branch, grad_gate, grad_logits, weight_dots
