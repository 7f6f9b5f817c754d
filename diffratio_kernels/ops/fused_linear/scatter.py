"""The MLP's second product whose rows are finished and put back where its accumulator is read."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import launch, row_block, row_map_of, unit_rows
from ..._triton.matmul import gated, grouped_tile, halves, product, product_options
from ..._triton.slices import sample_of
from ...types import Finish, Linear
from ..scatter_rescale.triton import finish


@triton.jit
def _copy_bypassed(x_ptr, row_map_ptr, out_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    if tl.load(row_map_ptr + row) < 0:
        tl.store(out_ptr + row * D + d, tl.load(x_ptr + row * D + d, mask=d < D), mask=d < D)


@triton.jit
def _put(
    total, row, f, rows, bias_ptr, x_ptr, index_ptr, hidden_ptr, gate_ptr, logits_ptr, out_ptr,
    tokens, stride_gate, score_scale, RESCALE: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    inside = (row < rows) & (f < F)
    target = tl.load(index_ptr + row, mask=row < rows, other=0)
    update = gated(total, bias_ptr, gate_ptr, sample_of(target, tokens) * stride_gate, f, inside, F)
    hidden = tl.load(hidden_ptr + row * F + f, mask=inside, other=0.0).to(tl.float32)
    factor = 1.0
    x = 0.0
    if RESCALE != "none":
        logits = tl.load(logits_ptr + target, mask=row < rows, other=0.0)
        factor = score_scale * tl.sigmoid(logits.to(tl.float32))
    if RESCALE == "residual":
        x = tl.load(x_ptr + target * F + f, mask=inside, other=0.0).to(tl.float32)
    base, delta = finish(x, hidden, update, RESCALE)
    tl.store(out_ptr + target * F + f, (base + factor * delta).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _linear_scatter(
    rows_ptr, weight_ptr, bias_ptr, x_ptr, index_ptr, hidden_ptr, gate_ptr, logits_ptr, out_ptr,
    rows, tokens, stride_gate, score_scale, RESCALE: tl.constexpr,
    K: tl.constexpr, F: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_F: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = grouped_tile(rows, F, BLOCK_M, BLOCK_N, GROUP)
    total = product(rows_ptr, weight_ptr, row, column, rows, K, F, STRIDE_K, STRIDE_F, BLOCK_N, BLOCK_K)
    left, right = halves(total)
    f = column + tl.arange(0, BLOCK_N // 2)[None, :]
    _put(
        left, row, f, rows, bias_ptr, x_ptr, index_ptr, hidden_ptr, gate_ptr, logits_ptr, out_ptr,
        tokens, stride_gate, score_scale, RESCALE, F,
    )  # fmt: skip
    f += BLOCK_N // 2
    _put(
        right, row, f, rows, bias_ptr, x_ptr, index_ptr, hidden_ptr, gate_ptr, logits_ptr, out_ptr,
        tokens, stride_gate, score_scale, RESCALE, F,
    )  # fmt: skip


def linear_scatter(given: Finish, linear: Linear) -> Tensor:
    """`scatter_rescale` of linear(branch), which is never stored: a new [B, N, D].

    branch [T, F], weight [D, F].
    """
    x, gate, rescale, bias = given.x.contiguous(), unit_rows(given.gate), given.rescale, linear.bias
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    launch(_copy_bypassed, (row_map.shape[0],), x, row_map, out, **row_block(x.shape[2]))
    inputs = given.branch.contiguous()
    grid, options = product_options("linear_scatter", inputs, linear.weight.t())
    launch(
        _linear_scatter, grid,
        inputs, linear.weight, None if bias is None else bias.contiguous(), x,
        given.rows.index.contiguous(), given.hidden.contiguous(), gate, given.logits.contiguous(), out,
        inputs.shape[0], given.rows.tokens, gate.stride(0), rescale.score_scale, RESCALE=rescale.mode,
        **options,
    )  # fmt: skip
    return out
