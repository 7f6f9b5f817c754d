"""Kept rows of x, then layer norm without affine, then the scale and shift of each row's own sample."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, row_block, unit_rows


@triton.jit
def row_stats(row, d, D: tl.constexpr, eps):
    """Mean and 1/std of a row whose elements beyond D are zero."""
    mean = tl.sum(row, axis=0) / D
    centred = tl.where(d < D, row - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, axis=0) / D + eps)


@triton.jit
def _gather_adaln_fwd(
    x_ptr, index_ptr, shift_ptr, scale_ptr, rows_ptr, normed_ptr,
    tokens, stride_shift, stride_scale, eps, GATHER: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    index = tl.load(index_ptr + t)
    sample = index // tokens
    source = index if GATHER else t
    raw = tl.load(x_ptr + source * D + d, mask=d < D, other=0.0)
    if rows_ptr is not None:
        tl.store(rows_ptr + t * D + d, raw, mask=d < D)
    row = raw.to(tl.float32)
    mean, rstd = row_stats(row, d, D, eps)
    scale = tl.load(scale_ptr + sample * stride_scale + d, mask=d < D, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + sample * stride_shift + d, mask=d < D, other=0.0).to(tl.float32)
    normed = (row - mean) * rstd * (1 + scale) + shift
    tl.store(normed_ptr + t * D + d, normed.to(normed_ptr.dtype.element_ty), mask=d < D)


def _run(x: Tensor, index: Tensor, tokens: int, shift: Tensor, scale: Tensor, eps: float, keep_rows: bool):
    width = x.shape[-1]
    normed = torch.empty(index.shape[0], width, dtype=x.dtype, device=x.device)
    rows = torch.empty_like(normed) if keep_rows else None
    shift, scale = unit_rows(shift), unit_rows(scale)
    launch(
        _gather_adaln_fwd, (index.shape[0],),
        x.contiguous(), index.contiguous(), shift, scale, rows, normed,
        tokens, shift.stride(0), scale.stride(0), eps, GATHER=x.dim() == 3, **row_block(width),
    )  # fmt: skip
    return rows, normed


def gather_adaln(
    x: Tensor, index: Tensor, shift: Tensor, scale: Tensor, eps: float, keep_rows: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Kept rows of x [B, N, D], or None where they are not wanted, and the same after adaLN, each [T, D].
    shift, scale [B, D]."""
    return _run(x, index, x.shape[1], shift, scale, eps, keep_rows)


def adaln(rows: Tensor, index: Tensor, tokens: int, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """adaLN of packed rows [T, D]."""
    return _run(rows, index, tokens, shift, scale, eps, False)[1]
