"""Kept rows of x, then a norm without affine, then the scale and shift of each row's own sample or group.

Backward: gradients of the rows, and of shift and scale without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import FEW_REGISTERS, ROWS_PER_SLICE, launch, row_block, row_map_of, unit_rows
from ..._triton.slices import (
    Slices,
    at_place,
    groups_of,
    leave,
    owner_of,
    put_row,
    row_at,
    slice_of,
    slot,
    token_at,
    vector_of,
)  # fmt: skip
from ...types import PackedRows


@triton.jit
def row_stats(row, d, D: tl.constexpr, eps, RMS: tl.constexpr = False):
    """Mean and 1/std, or 0 and 1/rms, of a row whose elements beyond D are zero."""
    mean = 0.0 if RMS else tl.sum(row, axis=0) / D
    centred = row if RMS else tl.where(d < D, row - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, axis=0) / D + eps)


@triton.jit
def _gather_adaln_fwd(
    x_ptr, index_ptr, groups_ptr, shift_ptr, scale_ptr, rows_ptr, normed_ptr,
    tokens, stride_shift, stride_scale, eps, RMS: tl.constexpr, GATHER: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    index = tl.load(index_ptr + t)
    owner = owner_of(groups_ptr, index, tokens)
    source = index if GATHER else t
    raw = tl.load(x_ptr + source * D + d, mask=d < D, other=0.0)
    scale = tl.load(scale_ptr + owner * stride_scale + d, mask=d < D, other=0.0)  # before the sums
    shift = tl.load(shift_ptr + owner * stride_shift + d, mask=d < D, other=0.0)
    if rows_ptr is not None:
        tl.store(rows_ptr + t * D + d, raw, mask=d < D)
    row = raw.to(tl.float32)
    mean, rstd = row_stats(row, d, D, eps, RMS)
    normed = (row - mean) * rstd * (1 + scale.to(tl.float32)) + shift.to(tl.float32)
    tl.store(normed_ptr + t * D + d, normed.to(normed_ptr.dtype.element_ty), mask=d < D)


def gather_adaln(
    x: Tensor,
    rows: PackedRows,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    norm: str = "layer",
    keep_rows: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Kept rows of x [B, N, D], or None where they are not wanted, and the same after adaLN, each [T, D].
    shift, scale [B, D], with groups [G, D]. An x [T, D] is the kept rows."""
    count, width = rows.index.shape[0], x.shape[-1]
    normed = torch.empty(count, width, dtype=x.dtype, device=x.device)
    gathered = torch.empty_like(normed) if keep_rows else None
    shift, scale = unit_rows(shift), unit_rows(scale)
    launch(
        _gather_adaln_fwd, (count,),
        x.contiguous(), rows.index.contiguous(), groups_of(rows), shift, scale, gathered, normed,
        rows.tokens, shift.stride(0), scale.stride(0), eps,
        RMS=norm == "rms", GATHER=x.dim() == 3, **row_block(width),
    )  # fmt: skip
    return gathered, normed


def adaln(
    hidden: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, norm: str = "layer"
) -> Tensor:
    """adaLN of packed rows [T, D]."""
    return gather_adaln(hidden, rows, shift, scale, eps, norm, keep_rows=False)[1]


@triton.jit
def _gather_adaln_bwd(
    rows_ptr, row_map_ptr, order_ptr, groups_ptr, scale_ptr, grad_rows_ptr, grad_normed_ptr, grad_x_ptr,
    partial_shift_ptr, partial_scale_ptr, tokens, stride_scale, eps, RMS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SCATTER: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of a sample, or by group. grad_x has all rows of x with SCATTER, packed rows without."""
    part = tl.program_id(0)
    sample = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    begin, end = sample * tokens + part * ROWS, (sample + 1) * tokens
    token_of, _, owners = slice_of(row_map_ptr, order_ptr, groups_ptr, begin, end, ROWS)
    group = sample if order_ptr is None else at_place(owners, 0)
    total_shift = tl.zeros((BLOCK_D,), tl.float32)
    total_scale = tl.zeros((BLOCK_D,), tl.float32)
    for place in range(begin, tl.minimum(begin + ROWS, end)):
        token = token_at(order_ptr, token_of, place, begin)
        if order_ptr is not None:
            own = at_place(owners, place - begin)
            if own != group:
                leave(partial_shift_ptr, partial_scale_ptr, part + group, total_shift, total_scale, d, D)
                total_shift = tl.zeros((BLOCK_D,), tl.float32)
                total_scale = tl.zeros((BLOCK_D,), tl.float32)
                group = own
        t = tl.load(row_map_ptr + token)  # out of the cache but for the first: no register is left for them
        if t >= 0:
            row = row_at(rows_ptr, t, d, D).to(tl.float32)
            grad = row_at(grad_normed_ptr, t, d, D).to(tl.float32)
            mean, rstd = row_stats(row, d, D, eps, RMS)
            normed = tl.where(d < D, (row - mean) * rstd, 0.0)
            total_shift += grad
            total_scale += grad * normed
            # rstd (g - mean(g) - n mean(g n)) + the gradient of the row itself, with g = grad (1 + scale)
            g = grad * (1 + vector_of(scale_ptr, group, stride_scale, d, D))
            if RMS:  # which takes no mean off
                grad_row = rstd * (g - normed * (tl.sum(g * normed, axis=0) / D))
            else:
                grad_row = rstd * (g - tl.sum(g, axis=0) / D - normed * (tl.sum(g * normed, axis=0) / D))
            if grad_rows_ptr is not None:
                grad_row += row_at(grad_rows_ptr, t, d, D).to(tl.float32)
            put_row(grad_x_ptr, token if SCATTER else t, grad_row, d, D)
        elif SCATTER:
            put_row(grad_x_ptr, token, tl.zeros((BLOCK_D,), tl.float32), d, D)
    own = slot(order_ptr, part, sample, group)
    leave(partial_shift_ptr, partial_scale_ptr, own, total_shift, total_scale, d, D)


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
    grad_x = torch.empty(count if x_rows is None else x_rows, width, dtype=hidden.dtype, device=hidden.device)
    scale, slices = unit_rows(scale), Slices.of(rows, scale.shape[0])
    partial_shift, partial_scale = (slices.partial(width, hidden) for _ in range(2))
    launch(
        _gather_adaln_bwd, slices.grid,
        hidden.contiguous(), row_map_of(rows, slices.count), slices.order, slices.groups, scale,
        None if grad_rows is None else grad_rows.contiguous(), grad_normed.contiguous(),
        grad_x, partial_shift, partial_scale, slices.tokens, scale.stride(0), eps,
        RMS=norm == "rms", ROWS=ROWS_PER_SLICE, SCATTER=x_rows is not None,
        **row_block(width, 8 if rows.groups is None else 4), **FEW_REGISTERS,
    )  # fmt: skip
    return grad_x, slices.total(partial_shift), slices.total(partial_scale)
