"""Backward of scatter_rescale: every row of x once, gate gradients without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ROWS_PER_SLICE, accumulator, launch, row_block, unit_rows
from .row_places import row_places
from .scatter_rescale import finish


@triton.jit
def _scatter_rescale_bwd(
    grad_ptr, x_ptr, place_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr,
    grad_x_ptr, grad_hidden_ptr, grad_branch_ptr, grad_logits_ptr, partial_ptr,
    tokens, stride_gate, score_scale, RESCALE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    dtype = grad_x_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + sample * stride_gate + d, mask=d < D, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    begin = sample * tokens + part * ROWS
    for row in range(begin, tl.minimum(begin + ROWS, (sample + 1) * tokens)):
        raw = tl.load(grad_ptr + row * D + d, mask=d < D, other=0.0)
        t = tl.load(place_ptr + row).to(tl.int64)
        if t < 0:
            tl.store(grad_x_ptr + row * D + d, raw, mask=d < D)
            tl.store(grad_logits_ptr + row, 0.0)
        else:
            grad = raw.to(tl.float32)
            hidden = tl.load(hidden_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
            branch = tl.load(branch_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
            sigmoid = tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
            factor = 1.0 if RESCALE == "none" else score_scale * sigmoid
            x = (
                tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
                if RESCALE == "residual"
                else 0.0
            )
            base, delta = finish(x, hidden, gate * branch, RESCALE)
            grad_factor = tl.sum(grad * delta, axis=0)
            # A logit without a say may be NaN.
            grad_logit = 0.0 if RESCALE == "none" else grad_factor * factor * (1 - sigmoid)
            tl.store(grad_logits_ptr + row, grad_logit)
            total += factor * branch * grad
            hidden_weight = factor if RESCALE == "residual" or RESCALE == "output" else 1.0
            x_weight = 1 - factor if RESCALE == "residual" else 0.0
            tl.store(grad_x_ptr + row * D + d, (x_weight * grad).to(dtype), mask=d < D)
            tl.store(grad_hidden_ptr + t * D + d, (hidden_weight * grad).to(dtype), mask=d < D)
            tl.store(grad_branch_ptr + t * D + d, (factor * gate * grad).to(dtype), mask=d < D)
    tl.store(partial_ptr + (sample * tl.num_programs(0) + part) * D + d, total, mask=d < D)


def scatter_rescale_backward(
    grad_out: Tensor,
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str,
    score_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, hidden, branch in their dtype, of gate [B, D] and logits [B, N] in fp32."""
    batch, tokens, width = x.shape
    gate, slices = unit_rows(gate), triton.cdiv(tokens, ROWS_PER_SLICE)
    grad_x, grad_hidden, grad_branch = (
        torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in (x, hidden, branch)
    )
    grad_logits = accumulator(batch, tokens, like=x)
    partial = accumulator(batch, slices, width, like=x)
    launch(
        _scatter_rescale_bwd, (slices, batch),
        grad_out.contiguous(), x.contiguous(), row_places(index, batch * tokens), hidden.contiguous(),
        branch.contiguous(), gate, logits.contiguous(),
        grad_x, grad_hidden, grad_branch, grad_logits, partial,
        tokens, gate.stride(0), score_scale, RESCALE=rescale, ROWS=ROWS_PER_SLICE, **row_block(width),
    )  # fmt: skip
    return grad_x, grad_hidden, grad_branch, partial.sum(1), grad_logits
