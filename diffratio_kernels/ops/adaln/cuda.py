"""`gather_adaln` and `adaln` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import PackedRows
from .. import cuda
from ..cuda import column_sums, fp32_rows, row_map_of, stream


def gather_adaln(
    x: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, keep_rows: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Kept rows of x [B, N, D], or None where they are not wanted, and the same after adaLN, each [T, D]. An
    x [T, D] is the kept rows."""
    normed = torch.empty(rows.index.shape[0], x.shape[-1], dtype=x.dtype, device=x.device)
    gathered, gather = torch.empty_like(normed) if keep_rows else None, x.dim() == 3
    cuda.operators.gather_adaln(
        x.contiguous(), rows.index.contiguous(), rows.tokens, gather, fp32_rows(shift), fp32_rows(scale), eps,
        gathered, normed, stream(x),
    )  # fmt: skip
    return gathered, normed


def adaln(hidden: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """adaLN of packed rows [T, D]."""
    return gather_adaln(hidden, rows, shift, scale, eps, keep_rows=False)[1]


def adaln_backward(
    hidden: Tensor,
    rows: PackedRows,
    scale: Tensor,
    eps: float,
    grad_rows: Tensor | None,
    grad_normed: Tensor,
    x_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the CPU kernels' `adaln_backward`; gradients of shift and scale in fp32."""
    (count, width), samples, tokens = hidden.shape, scale.shape[0], rows.tokens
    like = {"dtype": hidden.dtype, "device": hidden.device}
    grad_x = torch.empty(count if x_rows is None else x_rows, width, **like)
    stats = torch.empty(count, 2, dtype=torch.float32, device=hidden.device)
    partial, grad_modulation = column_sums(hidden, 2, samples, tokens, width)
    cuda.operators.gather_adaln_backward(
        hidden.contiguous(), rows.index.contiguous(), row_map_of(rows, samples * tokens), tokens,
        x_rows is not None, fp32_rows(scale), None if grad_rows is None else grad_rows.contiguous(),
        grad_normed.contiguous(), eps, grad_x, stats, partial, grad_modulation, stream(hidden),
    )  # fmt: skip
    grad_shift, grad_scale = grad_modulation.unbind(0)
    return grad_x, grad_shift, grad_scale
