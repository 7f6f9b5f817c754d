"""A product that joins the residual stream where its accumulator is read: no pass over the branch [T, F]."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import launch, unit_rows
from ..._triton.matmul import gated, grouped_tile, halves, product, product_options
from ..._triton.slices import sample_of
from ...types import Linear, PackedRows


@triton.jit
def _finish(
    total, row, f, rows, bias_ptr, hidden_ptr, gate_ptr, index_ptr, out_ptr, tokens, stride_gate,
    GATHER: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    inside = (row < rows) & (f < F)
    source, of_sample = row, 0
    if index_ptr is not None:
        index = tl.load(index_ptr + row, mask=row < rows, other=0).to(tl.int32)
        of_sample = sample_of(index, tokens) * stride_gate
        source = index.to(tl.int64) if GATHER else row
    total = gated(total, bias_ptr, gate_ptr, of_sample, f, inside, F)
    total += tl.load(hidden_ptr + source * F + f, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * F + f, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _linear_gate_residual(
    rows_ptr, weight_ptr, bias_ptr, hidden_ptr, gate_ptr, index_ptr, out_ptr, rows, tokens, stride_gate,
    GATHER: tl.constexpr, K: tl.constexpr, F: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_F: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = grouped_tile(rows, F, BLOCK_M, BLOCK_N, GROUP)
    total = product(rows_ptr, weight_ptr, row, column, rows, K, F, STRIDE_K, STRIDE_F, BLOCK_N, BLOCK_K)
    left, right = halves(total)
    f = column + tl.arange(0, BLOCK_N // 2)[None, :]
    of_rows = rows, bias_ptr, hidden_ptr, gate_ptr, index_ptr, out_ptr, tokens, stride_gate
    _finish(left, row, f, *of_rows, GATHER, F)
    f += BLOCK_N // 2
    _finish(right, row, f, *of_rows, GATHER, F)


def linear_gate_residual(
    hidden: Tensor,
    inputs: Tensor,
    linear: Linear,
    gate: Tensor | None,
    rows: PackedRows,
    in_place: bool = False,
) -> Tensor:
    """hidden + gate * linear(inputs) [T, F], rounded once; without a gate every factor is 1.

    hidden [T, F], or x [B, N, F] whose row index[t] is hidden's row t; inputs [T, K], weight [F, K]; gate [B,
    F] of any float dtype. in_place writes the result to `hidden`, which must be packed and contiguous."""
    gather = hidden.dim() == 3
    if gather and in_place:
        raise ValueError("hidden must be packed rows to be written in place, not x")
    weight, bias = linear.weight, linear.bias
    hidden, packed = hidden.contiguous(), (inputs.shape[0], weight.shape[0])
    out = hidden if in_place else torch.empty(packed, dtype=hidden.dtype, device=hidden.device)
    needs_index = gather or gate is not None
    gate = None if gate is None else unit_rows(gate)
    grid, options = product_options("linear_gate_residual", inputs, weight.t())
    launch(
        _linear_gate_residual, grid,
        inputs.contiguous(), weight, None if bias is None else bias.contiguous(), hidden, gate,
        rows.index.contiguous() if needs_index else None, out, inputs.shape[0], rows.tokens,
        0 if gate is None else gate.stride(0), GATHER=gather, **options,
    )  # fmt: skip
    return out
