"""Attention of two bins in one pass over the keys: the small set is a prefix, at whose end the online softmax
of a query is what attention within the small set gives."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import config
from .attention import LOG2_E, attend, layout, load_part, parts, store_part
from .launch import accumulator, launch, unit_rows


@triton.jit
def bin_ranges(large_offsets_ptr, small_offsets_ptr, sample, total_large):
    """First row and count of a sample's large set, and of its small set among all T + S rows."""
    large = tl.load(large_offsets_ptr + sample)
    small = tl.load(small_offsets_ptr + sample)
    count_large = tl.load(large_offsets_ptr + sample + 1) - large
    count_small = tl.load(small_offsets_ptr + sample + 1) - small
    return large.to(tl.int64), count_large, small.to(tl.int64) + total_large, count_small


@triton.jit
def _two_bin_attention(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, large_offsets_ptr, small_offsets_ptr, total_large, rows, scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, sample = tl.program_id(1), tl.program_id(2)
    first, large, first_small, small = bin_ranges(large_offsets_ptr, small_offsets_ptr, sample, total_large)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= large:
        return
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first * STRIDE_K + head * HEAD_K
    v_ptr += first * STRIDE_V + head * HEAD_V

    query0 = load_part(q_ptr, m, large, STRIDE_Q, 0, D0, D, True)
    query1 = load_part(q_ptr, m, large, STRIDE_Q, D0, D1, D, True) if D1 > 0 else query0
    out0 = tl.zeros((BLOCK_M, D0), tl.float32)
    out1 = tl.zeros((BLOCK_M, D1), tl.float32) if D1 > 0 else out0
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # The small bin first, where a query is of its set, then on from its last key to the large bin's.
    split = tl.where(tl.program_id(0) * BLOCK_M < small, small, 0)
    for bin in range(tl.where(split > 0, 0, 1), 2):
        begin, end = tl.where(bin == 0, 0, split), tl.where(bin == 0, split, large)
        out0, out1, largest, total = attend(
            query0, query1, out0, out1, largest, total, k_ptr, v_ptr, begin, end, scale,
            STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N,
        )  # fmt: skip
        row = tl.where(bin == 0, first_small, first)
        at = out_ptr + row * (H * D) + head * D
        store_part(at, out0 / total[:, None], m, end, H * D, 0, D0, D)
        if D1 > 0:
            store_part(at, out1 / total[:, None], m, end, H * D, D0, D1, D)
        if lse_ptr is not None:
            at = lse_ptr + head.to(tl.int64) * rows + row + m
            tl.store(at, largest + tl.log2(total), mask=m < end)


def two_bin_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    longest_large: int,
    longest_small: int,
    small: int,
    scale: float | None = None,
    save_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """query, key, value [T, H, d], the small set first in each sample; small is S -> [T + S, H, d].

    Rows [0, T): attention within the large sets, [T, T + S): within the small ones. With save_lse also log2
    of the sums of exponentials [H, T + S] fp32, which the backward pass needs.
    """
    query, key, value = (unit_rows(t) for t in (query, key, value))
    count, heads, head_dim = query.shape
    if head_dim > config.LARGEST_HEAD_DIM_OF_TWO_BINS:
        raise ValueError(
            f"two_bin_attention: query has head_dim {head_dim}, the Triton kernels of two bins take up to 128"
        )
    scale = LOG2_E * (1 / math.sqrt(head_dim) if scale is None else scale)
    out = torch.empty(count + small, heads, head_dim, dtype=query.dtype, device=query.device)
    lse = accumulator(heads, count + small, like=query) if save_lse else None
    tiles = config.attention_tiles("two_bin_attention", query, sum(parts(head_dim)))
    launch(
        _two_bin_attention, (triton.cdiv(longest_large, tiles["BLOCK_M"]), heads, large_offsets.shape[0] - 1),
        query, key, value, out, lse, large_offsets.contiguous(), small_offsets.contiguous(),
        count, count + small, scale, **layout(query, key, value), **tiles,
    )  # fmt: skip
    return (out, lse) if save_lse else out
