"""`two_bin_blend` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import PackedRows, Rescale
from .. import cuda
from ..cuda import column_sums, fp32, fp32_rows, row_map_of, stream, two_bins


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
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    cuda.operators.two_bin_blend(
        x.contiguous(), row_map_of(rows, x.shape[:2].numel()), x.shape[1], hidden.contiguous(),
        branch.contiguous(), fp32_rows(gate), fp32(logits), *two_bins(rows.bins), rescale.mode,
        rescale.score_scale, out, stream(x),
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
    """Gradients of x, hidden [T + S, D], branch, gate [B, D] and logits [B, N]; that of weight_large row by
    row [T]. The last three are fp32."""
    batch, tokens, width = x.shape
    grad_x, grad_hidden, grad_branch = (
        torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in (x, hidden, branch)
    )
    grad_logits = torch.empty(logits.shape, dtype=torch.float32, device=x.device)
    weight_dots = torch.empty(branch.shape[0], dtype=torch.float32, device=x.device)
    partial, grad_gate = column_sums(x, 1, batch, tokens, width)
    cuda.operators.two_bin_blend_backward(
        grad_out.contiguous(), x.contiguous(), row_map_of(rows, batch * tokens), tokens,
        hidden.contiguous(), branch.contiguous(), fp32_rows(gate), fp32(logits), *two_bins(rows.bins),
        rescale.mode, rescale.score_scale, grad_x, grad_hidden, grad_branch, partial, grad_gate,
        grad_logits, weight_dots, stream(x),
    )  # fmt: skip
    return grad_x, grad_hidden, grad_branch, grad_gate[0], grad_logits, weight_dots
