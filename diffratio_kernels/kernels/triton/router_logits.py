"""logits[r] = x[r] . weight + bias in fp32, and the gradients of x and weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ROWS_PER_SLICE, accumulator, launch, row_block


@triton.jit
def _router_logits_fwd(
    x_ptr, weight_ptr, bias_ptr, logits_ptr, rows,
    D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row[:, None] < rows
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    for start in tl.static_range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(x_ptr + row[:, None] * D + d, mask=inside & (d < D), other=0.0).to(tl.float32)
        total += x * tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    logits = tl.sum(total, axis=1)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr).to(tl.float32)
    tl.store(logits_ptr + row, logits, mask=row < rows)


@triton.jit
def _router_logits_bwd(
    x_ptr, weight_ptr, grad_ptr, grad_x_ptr, partial_ptr, rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for row in range(part * ROWS, tl.minimum(part * ROWS + ROWS, rows)):
        grad = tl.load(grad_ptr + row)
        total += grad * tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + row * D + d, (grad * weight).to(grad_x_ptr.dtype.element_ty), mask=d < D)
    tl.store(partial_ptr + part * D + d, total, mask=d < D)


def router_logits(x: Tensor, router_weight: Tensor, router_bias: Tensor | None) -> Tensor:
    """x [B, N, D], router_weight [D], router_bias [1] or None -> logits [B, N] fp32."""
    x, width = x.contiguous(), x.shape[2]
    logits = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    block = max(128, triton.next_power_of_2(width) // 16)
    tile = 2048 // block  # rows of a program: 16 elements a thread at a time
    launch(
        _router_logits_fwd, (triton.cdiv(logits.numel(), tile),),
        x, router_weight.contiguous(), router_bias, logits, logits.numel(),
        D=width, BLOCK_ROWS=tile, BLOCK_D=block, num_warps=4,
    )  # fmt: skip
    return logits


def router_logits_backward(grad_logits: Tensor, x: Tensor, router_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [B, N, D] in its dtype, of router_weight [D] in fp32."""
    x, grad_logits, rows = x.contiguous(), grad_logits.contiguous(), grad_logits.numel()
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    slices = triton.cdiv(rows, ROWS_PER_SLICE)
    partial = accumulator(slices, x.shape[2], like=x)
    launch(
        _router_logits_bwd, (slices,),
        x, router_weight.contiguous(), grad_logits, grad_x, partial, rows,
        ROWS=ROWS_PER_SLICE, **row_block(x.shape[2]),
    )  # fmt: skip
    return grad_x, partial.sum(0)
