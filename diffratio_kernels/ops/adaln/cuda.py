"""`gather_adaln` and `adaln` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import PackedRows
from .. import cuda
from ..cuda import RowSums, fp32_rows, groups_of, row_map_of, stream


def gather_adaln(
    x: Tensor,
    rows: PackedRows,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    norm: str = "layer",
    keep_rows: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Kept rows of x [B, N, D], or None where they are not wanted, and the same after adaLN, each [T, D]. An
    x [T, D] is the kept rows."""
    normed = torch.empty(rows.index.shape[0], x.shape[-1], dtype=x.dtype, device=x.device)
    gathered, gather = torch.empty_like(normed) if keep_rows else None, x.dim() == 3
    cuda.operators.gather_adaln(
        x.contiguous(), rows.index.contiguous(), rows.tokens, groups_of(rows), gather, fp32_rows(shift),
        fp32_rows(scale), norm, eps, gathered, normed, stream(x),
    )  # fmt: skip
    return gathered, normed


def adaln(
    hidden: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, norm: str = "layer"
) -> Tensor:
    """adaLN of packed rows [T, D]."""
    return gather_adaln(hidden, rows, shift, scale, eps, norm, keep_rows=False)[1]


def adaln_backward(
    hidden: Tensor,
    rows: PackedRows,
    scale: Tensor,
    eps: float,
    grad_rows: Tensor | None,
    grad_normed: Tensor,
    x_rows: int | None,
    norm: str = "layer",
) -> tuple[Tensor, Tensor, Tensor]:
    """As the CPU kernels' `adaln_backward`; gradients of shift and scale in fp32."""
    count, width = hidden.shape
    like = {"dtype": hidden.dtype, "device": hidden.device}
    grad_x = torch.empty(count if x_rows is None else x_rows, width, **like)
    stats = torch.empty(count, 2, dtype=torch.float32, device=hidden.device)
    sums = RowSums(hidden, 2, rows, scale.shape[0], width)
    cuda.operators.gather_adaln_backward(
        hidden.contiguous(), rows.index.contiguous(), row_map_of(rows, sums.count), rows.tokens,
        *sums.places(), x_rows is not None, fp32_rows(scale),
        None if grad_rows is None else grad_rows.contiguous(), grad_normed.contiguous(), norm, eps,
        grad_x, stats, sums.partial, sums.sums, stream(hidden),
    )  # fmt: skip
    grad_shift, grad_scale = sums.sums.unbind(0)
    return grad_x, grad_shift, grad_scale
