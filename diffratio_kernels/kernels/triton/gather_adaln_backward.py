"""Backward of gather_adaln and adaln: gradients of the rows, and of shift and scale without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gather_adaln import row_stats
from .launch import ROWS_PER_SLICE, accumulator, launch, row_block, unit_rows
from .row_places import row_places


@triton.jit
def _gather_adaln_bwd(
    rows_ptr, place_ptr, scale_ptr, grad_rows_ptr, grad_normed_ptr, grad_x_ptr, partial_shift_ptr,
    partial_scale_ptr, tokens, stride_scale, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SCATTER: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of a sample. grad_x has all rows of x with SCATTER, packed rows without."""
    part = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    dtype = grad_x_ptr.dtype.element_ty
    scale = tl.load(scale_ptr + sample * stride_scale + d, mask=d < D, other=0.0).to(tl.float32)
    total_shift = tl.zeros((BLOCK_D,), tl.float32)
    total_scale = tl.zeros((BLOCK_D,), tl.float32)
    begin = sample * tokens + part * ROWS
    for token in range(begin, tl.minimum(begin + ROWS, (sample + 1) * tokens)):
        t = tl.load(place_ptr + token).to(tl.int64)
        grad_row = tl.zeros((BLOCK_D,), tl.float32)
        if t >= 0:
            row = tl.load(rows_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
            grad = tl.load(grad_normed_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
            mean, rstd = row_stats(row, d, D, eps)
            normed = tl.where(d < D, (row - mean) * rstd, 0.0)
            total_shift += grad
            total_scale += grad * normed
            # rstd (g - mean(g) - n mean(g n)) + the gradient of the row itself, with g = grad (1 + scale)
            g = grad * (1 + scale)
            grad_row = rstd * (g - tl.sum(g, axis=0) / D - normed * (tl.sum(g * normed, axis=0) / D))
            if grad_rows_ptr is not None:
                grad_row += tl.load(grad_rows_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
            if not SCATTER:
                tl.store(grad_x_ptr + t * D + d, grad_row.to(dtype), mask=d < D)
        if SCATTER:
            tl.store(grad_x_ptr + token * D + d, grad_row.to(dtype), mask=d < D)
    partial = (sample * tl.num_programs(0) + part) * D + d
    tl.store(partial_shift_ptr + partial, total_shift, mask=d < D)
    tl.store(partial_scale_ptr + partial, total_scale, mask=d < D)


def adaln_backward(
    rows: Tensor,
    index: Tensor,
    tokens: int,
    scale: Tensor,
    eps: float,
    grad_rows: Tensor | None,
    grad_normed: Tensor,
    x_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (with `x_rows`, rows of the flattened x that was gathered) or rows, of shift and scale.

    grad_rows: gradient of the gathered rows themselves, if any. The gradients of shift and scale are fp32.
    """
    (count, width), batch = rows.shape, scale.shape[0]
    grad_x = torch.empty(count if x_rows is None else x_rows, width, dtype=rows.dtype, device=rows.device)
    scale, slices = unit_rows(scale), triton.cdiv(tokens, ROWS_PER_SLICE)
    partial_shift, partial_scale = (accumulator(batch, slices, width, like=rows) for _ in range(2))
    launch(
        _gather_adaln_bwd, (slices, batch),
        rows.contiguous(), row_places(index, batch * tokens), scale,
        None if grad_rows is None else grad_rows.contiguous(), grad_normed.contiguous(),
        grad_x, partial_shift, partial_scale, tokens, scale.stride(0), eps,
        ROWS=ROWS_PER_SLICE, SCATTER=x_rows is not None, **row_block(width),
    )  # fmt: skip
    return grad_x, partial_shift.sum(1), partial_scale.sum(1)
