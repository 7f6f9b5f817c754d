"""A product that joins the residual stream where its accumulator is read: no pass over the branch [T, F]."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, unit_rows
from .product import gated, grouped_tile, halves, product, product_options, sample_of


@triton.jit
def _finish(
    total, row, f, rows, bias_ptr, hidden_ptr, gate_ptr, index_ptr, out_ptr, tokens, stride_gate,
    F: tl.constexpr,
):  # fmt: skip
    inside = (row < rows) & (f < F)
    of_sample = 0
    if gate_ptr is not None:
        of_sample = sample_of(tl.load(index_ptr + row, mask=row < rows, other=0), tokens) * stride_gate
    total = gated(total, bias_ptr, gate_ptr, of_sample, f, inside, F)
    at = row * F + f
    total += tl.load(hidden_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _linear_gate_residual(
    rows_ptr, weight_ptr, bias_ptr, hidden_ptr, gate_ptr, index_ptr, out_ptr, rows, tokens, stride_gate,
    K: tl.constexpr, F: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_F: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = grouped_tile(rows, F, BLOCK_M, BLOCK_N, GROUP)
    total = product(rows_ptr, weight_ptr, row, column, rows, K, F, STRIDE_K, STRIDE_F, BLOCK_N, BLOCK_K)
    left, right = halves(total)
    f = column + tl.arange(0, BLOCK_N // 2)[None, :]
    _finish(left, row, f, rows, bias_ptr, hidden_ptr, gate_ptr, index_ptr, out_ptr, tokens, stride_gate, F)
    f += BLOCK_N // 2
    _finish(right, row, f, rows, bias_ptr, hidden_ptr, gate_ptr, index_ptr, out_ptr, tokens, stride_gate, F)


def linear_gate_residual(
    hidden: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    index: Tensor | None,
    tokens: int,
    in_place: bool = False,
) -> Tensor:
    """hidden + gate * (rows weight^T + bias) [T, F], rounded once.

    hidden [T, F], rows [T, K], weight [F, K], bias [F]; gate [B, F] of any float dtype: row t is of sample
    index[t] // tokens. Without a gate every factor is 1 and the index is not read. in_place writes the result
    to `hidden`, which must be contiguous.
    """
    hidden = hidden.contiguous()
    out = hidden if in_place else torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    if gate is not None:
        gate, index = unit_rows(gate), index.contiguous()
    grid, options = product_options("linear_gate_residual", rows, weight.t())
    launch(
        _linear_gate_residual, grid,
        rows.contiguous(), weight, None if bias is None else bias.contiguous(), hidden, gate,
        None if gate is None else index, out, rows.shape[0], tokens, 0 if gate is None else gate.stride(0),
        **options,
    )  # fmt: skip
    return out
