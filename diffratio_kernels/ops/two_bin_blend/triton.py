"""Blend the residual streams of two bins, finish the kept rows as scatter_rescale does, put them back.

Backward: every row of x once, gate gradients without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import (
    ROWS_PER_SLICE,
    accumulator,
    cdiv,
    launch,
    row_block,
    row_map_of,
    unit_rows,
)
from ..._triton.slices import at_place, leave, put_row, row_at, sample_of, slice_of, slot, start_of, vector_of
from ..._triton.two_bin_rows import columns_if, contiguous, small_row
from ...types import Finish


@triton.jit
def blend(x, large, small, update, weight, in_small, RESCALE: tl.constexpr):
    """A finished row is base + factor * delta, where the factor is the score (1 for "none").

    A row that the small bin does not have went through it unchanged, so there x takes its place.
    """
    other = tl.where(in_small, small, x)
    if RESCALE == "residual":  # differences first: hidden and x are close
        base, delta = x, weight * (large - x) + (1 - weight) * (other - x) + update
    elif RESCALE == "output":  # and x is not rescaled
        base = tl.where(in_small, 0.0, (1 - weight) * x)
        delta = weight * large + tl.where(in_small, (1 - weight) * small, 0.0) + update
    else:
        base, delta = weight * large + (1 - weight) * other, update
    return base, delta


@triton.jit(do_not_specialize=["rows"])
def _two_bin_blend(
    x_ptr, row_map_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr, weight_ptr, cu_seqlens_large_ptr,
    cu_seqlens_small_ptr, out_ptr, tokens, rows, stride_gate, score_scale,
    RESCALE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    t = tl.load(row_map_ptr + row).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    x_ptr += row * D
    out_ptr += row * D
    if t < 0:
        tl.store(out_ptr + d, tl.load(x_ptr + d, mask=d < D), mask=d < D)
    else:
        sample = sample_of(row, tokens)
        in_small, other = small_row(cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, t, rows)
        weight = tl.load(weight_ptr + sample).to(tl.float32)
        large = tl.load(hidden_ptr + t * D + d, mask=d < D).to(tl.float32)
        small = tl.load(hidden_ptr + other * D + d, mask=columns_if(in_small, d < D)).to(tl.float32)
        branch = tl.load(branch_ptr + t * D + d, mask=d < D).to(tl.float32)
        gate = tl.load(gate_ptr + sample * stride_gate + d, mask=d < D).to(tl.float32)
        needs_x = (d < D) if RESCALE == "residual" else columns_if(in_small == 0, d < D)
        x = tl.load(x_ptr + d, mask=needs_x).to(tl.float32)
        factor = 1.0
        if RESCALE != "none":
            factor = score_scale * tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
        base, delta = blend(x, large, small, gate * branch, weight, in_small, RESCALE)
        tl.store(out_ptr + d, (base + factor * delta).to(out_ptr.dtype.element_ty), mask=d < D)


def two_bin_blend(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows blended from both bins, finished and rescaled, the others as in x."""
    x, gate, bins, rescale = given.x.contiguous(), unit_rows(given.gate), given.rows.bins, given.rescale
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    launch(
        _two_bin_blend, (row_map.shape[0],),
        x, row_map, given.hidden.contiguous(), given.branch.contiguous(), gate, given.logits.contiguous(),
        *contiguous(bins), out, x.shape[1], bins.rows, gate.stride(0), rescale.score_scale,
        RESCALE=rescale.mode, **row_block(x.shape[2]),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _two_bin_blend_bwd(
    grad_ptr, x_ptr, row_map_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr, weight_ptr,
    cu_seqlens_large_ptr, cu_seqlens_small_ptr,
    grad_x_ptr, grad_hidden_ptr, grad_branch_ptr, grad_logits_ptr, dots_ptr, partial_ptr,
    tokens, rows, stride_gate, score_scale,
    RESCALE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    sample = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    dtype = grad_x_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + sample).to(tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    begin, end = sample * tokens + part * ROWS, (sample + 1) * tokens
    _, packed, _ = slice_of(row_map_ptr, None, None, begin, end, ROWS)
    for row in range(begin, tl.minimum(begin + ROWS, end)):
        t = at_place(packed, row - begin)
        raw = row_at(grad_ptr, row, d, D)
        if t < 0:
            put_row(grad_x_ptr, row, raw, d, D)
            tl.store(grad_logits_ptr + row, 0.0)
        else:
            grad = raw.to(tl.float32)
            in_small, other = small_row(cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, t, rows)
            both = columns_if(in_small, d < D)
            large = row_at(hidden_ptr, t, d, D).to(tl.float32)
            small = tl.load(hidden_ptr + other * D + d, mask=both, other=0.0).to(tl.float32)
            branch = row_at(branch_ptr, t, d, D).to(tl.float32)
            needs_x = (d < D) if RESCALE == "residual" else columns_if(in_small == 0, d < D)
            x = tl.load(x_ptr + start_of(row, D) + d, mask=needs_x, other=0.0).to(tl.float32)
            sigmoid = tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
            factor = 1.0 if RESCALE == "none" else score_scale * sigmoid
            gate = vector_of(gate_ptr, sample, stride_gate, d, D)
            base, delta = blend(x, large, small, gate * branch, weight, in_small, RESCALE)
            grad_factor = tl.sum(grad * delta, axis=0)
            # A logit without a say may be NaN.
            grad_logit = 0.0 if RESCALE == "none" else grad_factor * factor * (1 - sigmoid)
            tl.store(grad_logits_ptr + row, grad_logit)

            # What the row is a sum of: hidden times its bin's weight times stream, and in place of the small
            # hidden, where there is none, x times (1 - w) times passed.
            stream = factor if RESCALE == "residual" or RESCALE == "output" else 1.0
            passed = factor if RESCALE == "residual" else 1.0
            apart = stream * large - tl.where(in_small, stream * small, passed * x)
            tl.store(dots_ptr + t, tl.sum(grad * apart, axis=0))
            x_weight = tl.where(in_small, 0.0, (1 - weight) * passed)
            if RESCALE == "residual":
                x_weight += 1 - factor
            put_row(grad_x_ptr, row, x_weight * grad, d, D)
            put_row(grad_hidden_ptr, t, weight * stream * grad, d, D)
            tl.store(grad_hidden_ptr + other * D + d, ((1 - weight) * stream * grad).to(dtype), mask=both)
            gate = vector_of(gate_ptr, sample, stride_gate, d, D)
            put_row(grad_branch_ptr, t, factor * gate * grad, d, D)
            total += factor * branch * grad
    leave(partial_ptr, None, slot(None, part, sample, sample), total, total, d, D)


def two_bin_blend_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor, ...]:
    """Gradients of x, hidden [T + S, D] and branch in their dtype, of gate [B, D] and logits [B, N] in fp32,
    and what each packed row adds to that of weight_large [T] fp32."""
    x, bins, rescale = given.x, given.rows.bins, given.rescale
    batch, tokens, width = x.shape
    gate, slices = unit_rows(given.gate), cdiv(tokens, ROWS_PER_SLICE)
    exact = x, given.hidden, given.branch
    grads = [torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in exact]
    grad_logits, dots = accumulator(batch, tokens, like=x), accumulator(bins.rows, like=x)
    partial = accumulator(batch, slices, width, like=x)
    launch(
        _two_bin_blend_bwd, (slices, batch),
        grad_out.contiguous(), x.contiguous(), row_map_of(given.rows, batch * tokens),
        given.hidden.contiguous(), given.branch.contiguous(), gate, given.logits.contiguous(),
        *contiguous(bins), *grads, grad_logits, dots, partial, tokens, bins.rows, gate.stride(0),
        rescale.score_scale, RESCALE=rescale.mode, ROWS=ROWS_PER_SLICE, **row_block(width, 8),
        maxnreg=80,  # three blocks in a multiprocessor's registers, not two
    )  # fmt: skip
    return *grads, partial.sum(1), grad_logits, dots
