"""logits[r] = x[r] . weight + bias in fp32, and the gradients of x and weight."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import (
    FEW_REGISTERS,
    ROWS_PER_SLICE,
    accumulator,
    cdiv,
    launch,
    next_power_of_2,
    row_block,
)
from ..._triton.two_bin_rows import columns_if
from .cu_seqlens import empty_selection


@triton.jit
def _router_logits_fwd(
    x_ptr, weight_ptr, bias_ptr, logits_ptr, rows,
    D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row[:, None] < rows
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    for start in tl.range(0, D, BLOCK_D, loop_unroll_factor=4):
        d = start + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(x_ptr + row[:, None] * D + d, mask=inside & (d < D), other=0.0).to(tl.float32)
        # Read by each row anew: what is read once for all of them goes through shared memory.
        weight = tl.load(weight_ptr + d + row[:, None] * 0, mask=inside & (d < D), other=0.0)
        total += x * weight.to(tl.float32)
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
    begin, end = part * ROWS, tl.minimum(part * ROWS + ROWS, rows)
    following = tl.load(x_ptr + begin * D + d, mask=d < D, other=0.0)
    for row in range(begin, end):
        grad, x = tl.load(grad_ptr + row), following.to(tl.float32)
        following = tl.load(x_ptr + (row + 1) * D + d, mask=columns_if(row + 1 < end, d < D), other=0.0)
        total += grad * x
        tl.store(grad_x_ptr + row * D + d, (grad * weight).to(grad_x_ptr.dtype.element_ty), mask=d < D)
    tl.store(partial_ptr + part * D + d, total, mask=d < D)


def router_logits(x: Tensor, router_weight: Tensor, router_bias: Tensor | None) -> Tensor:
    """x [B, N, D], router_weight [D], router_bias [1] or None -> logits [B, N] fp32."""
    x, width = x.contiguous(), x.shape[2]
    logits = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    block = max(128, next_power_of_2(width) // 16)
    tile = 1024 // block  # rows of a program: a vector of 16 bytes a thread at a time
    launch(
        _router_logits_fwd, (cdiv(logits.numel(), tile),),
        x, router_weight.contiguous(), router_bias, logits, logits.numel(),
        D=width, BLOCK_ROWS=tile, BLOCK_D=block, num_warps=4, **FEW_REGISTERS,
    )  # fmt: skip
    return logits


def router_logits_backward(grad_logits: Tensor, x: Tensor, router_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [B, N, D] in its dtype, of router_weight [D] in fp32."""
    x, grad_logits, rows = x.contiguous(), grad_logits.contiguous(), grad_logits.numel()
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    slices = cdiv(rows, ROWS_PER_SLICE)
    partial = accumulator(slices, x.shape[2], like=x)
    launch(
        _router_logits_bwd, (slices,),
        x, router_weight.contiguous(), grad_logits, grad_x, partial, rows,
        ROWS=ROWS_PER_SLICE, **row_block(x.shape[2], 8),
    )  # fmt: skip
    return grad_x, partial.sum(0)


# Exact top-k per sample and the ordered list of the kept rows, in one launch. A radix select, eight bits at a
# time, finds the key of the k-th largest; a second pass over the logits writes every token above it, and as
# many of those equal to it as are wanted, in ascending order.


@triton.jit
def _order_keys(logits_ptr, start, tokens, BLOCK: tl.constexpr):
    """Keys (uint32, ordered like the logits) of the tokens from `start`, and which exist: larger logit
    first, -0 equals +0, NaN below -inf."""
    token = start + tl.arange(0, BLOCK)
    logit = tl.load(logits_ptr + token, mask=token < tokens, other=0.0) + 0.0  # -0 becomes +0
    bits = logit.to(tl.uint32, bitcast=True)
    key = bits ^ tl.where(bits >= 0x80000000, 0xFFFFFFFF, 0x80000000)
    return tl.where(logit == logit, key, 0), token < tokens


@triton.jit
def _next_digit(logits_ptr, tokens, shift, prefix, wanted, BLOCK: tl.constexpr):
    """Eight more bits of the wanted key, and how many keys with these bits are still wanted."""
    counts = tl.zeros((256,), tl.int32)
    for start in range(0, tokens, BLOCK):
        key, valid = _order_keys(logits_ptr, start, tokens, BLOCK)
        # Bits above the digit must equal those found before; in the first pass there are none.
        candidate = valid & ((key >> shift >> 8) == (prefix >> shift >> 8))
        counts += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=candidate)
    at_least = tl.cumsum(counts, axis=0, reverse=True)
    digit = tl.sum((at_least >= wanted).to(tl.int32), axis=0) - 1
    above = tl.sum(tl.where(tl.arange(0, 256) == digit, at_least - counts, 0), axis=0)
    return prefix | (digit.to(tl.uint32) << shift), wanted - above


@triton.jit
def _kept(key, valid, prefix, wanted, ties):
    """Which tokens are kept, and how many equal to the k-th largest were met so far."""
    tie = (valid & (key == prefix)).to(tl.int32)
    kept = (valid & (key > prefix)) | ((tie == 1) & (ties + tl.cumsum(tie, axis=0) <= wanted))
    return kept, ties + tl.sum(tie, axis=0)


@triton.jit(do_not_specialize=["equal_keep"])
def _topk_select(
    logits_ptr, equal_keep, cu_seqlens_ptr, keep_small_ptr, index_ptr, row_map_ptr, tokens,
    BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    logits_ptr += sample * tokens
    if equal_keep is None:
        first = tl.load(cu_seqlens_ptr + sample).to(tl.int64)
        keep = tl.load(cu_seqlens_ptr + sample + 1) - first.to(tl.int32)
    else:  # cu_seqlens is written
        first = sample * equal_keep
        keep = tl.full((), equal_keep, tl.int32)
        tl.store(cu_seqlens_ptr + sample, first.to(tl.int32))
        tl.store(cu_seqlens_ptr + sample + 1, (first + equal_keep).to(tl.int32))
    prefix = tl.full((), 0, tl.uint32)
    wanted = keep
    for digit in range(tl.where(keep == tokens, 0, 4)):  # all kept: the key 0, and as many ties as wanted
        prefix, wanted = _next_digit(logits_ptr, tokens, 24 - 8 * digit, prefix, wanted, BLOCK)
    if keep_small_ptr is not None:
        small = tl.load(keep_small_ptr + sample)
        prefix_small = tl.full((), 0, tl.uint32)
        wanted_small = small
        for digit in range(4):
            prefix_small, wanted_small = _next_digit(
                logits_ptr, tokens, 24 - 8 * digit, prefix_small, wanted_small, BLOCK
            )
        ties_small, taken_small = 0, 0

    ties, taken = 0, 0
    for start in range(0, tokens, BLOCK):
        key, valid = _order_keys(logits_ptr, start, tokens, BLOCK)
        kept, ties = _kept(key, valid, prefix, wanted, ties)
        place = taken + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        taken += tl.sum(kept.to(tl.int32), axis=0)
        if keep_small_ptr is not None:  # rows of the small bin first, then those that only the large bin has
            in_small, ties_small = _kept(key, valid, prefix_small, wanted_small, ties_small)
            place_small = taken_small + tl.cumsum(in_small.to(tl.int32), axis=0) - 1
            taken_small += tl.sum(in_small.to(tl.int32), axis=0)
            place = tl.where(in_small, place_small, small + place - place_small - 1)
        row = sample * tokens + start + tl.arange(0, BLOCK)
        tl.store(index_ptr + first + place, row, mask=kept)
        if row_map_ptr is not None:
            packed = tl.where(kept, first + place, -1).to(tl.int32)
            tl.store(row_map_ptr + row, packed, mask=valid)


def select(
    logits: Tensor, counts: list[int], counts_small: list[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the CPU kernels' `select`, in one launch."""
    (batch, tokens), selection = logits.shape, empty_selection(logits, counts, counts_small)
    index, cu_seqlens, row_map, small, equal = selection
    block = min(next_power_of_2(max(tokens, 256)), 4096)
    launch(
        _topk_select, (batch,),
        logits.contiguous(), equal, cu_seqlens, small, index, row_map, tokens,
        BLOCK=block, num_warps=max(block // 256, 4),
    )  # fmt: skip
    return index, cu_seqlens, row_map
