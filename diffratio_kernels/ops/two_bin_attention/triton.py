"""Attention of two bins in one pass over the keys: the small set is a prefix, at whose end the online softmax
of a query is what attention within the small set gives.

Backward: the scores of the small set are computed once for both bins, and each gradient is summed by
one program."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton import tiles
from ..._triton.attention import (
    attend,
    grad_of_queries,
    grads_of_keys,
    load_delta,
    load_part,
    parts,
    store_part,
)
from ..._triton.launch import accumulator, cdiv, launch, unit_rows
from ...types import Nested
from ..attention.triton import in_log2, layout, of_each_head, of_shared


@triton.jit
def bin_ranges(cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, total_large):
    """First row and count of a sample's large set, and of its small set among all T + S rows."""
    large = tl.load(cu_seqlens_large_ptr + sample)
    small = tl.load(cu_seqlens_small_ptr + sample)
    count_large = tl.load(cu_seqlens_large_ptr + sample + 1) - large
    count_small = tl.load(cu_seqlens_small_ptr + sample + 1) - small
    return large.to(tl.int64), count_large, small.to(tl.int64) + total_large, count_small


@triton.jit
def _two_bin_attention(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_seqlens_large_ptr, cu_seqlens_small_ptr, total_large, rows,
    scale,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, sample = tl.program_id(1), tl.program_id(2)
    first, large, first_small, small = bin_ranges(
        cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, total_large
    )
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= large:
        return
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first * STRIDE_V + head // GROUP * HEAD_V

    query0 = load_part(q_ptr, m, large, STRIDE_Q, 0, D0, D)
    query1 = load_part(q_ptr, m, large, STRIDE_Q, D0, D1, D) if D1 > 0 else query0
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
    query: Tensor, key: Tensor, value: Tensor, nested: Nested, scale: float | None, save_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """query [T, H, d]; key, value [T, h, d], the small set first in each sample -> [T + S, H, d].

    Rows [0, T): attention within the large sets, [T, T + S): within the small ones. With save_lse also log2
    of the sums of exponentials [H, T + S] fp32, which the backward pass needs."""
    query, key, value = (unit_rows(t) for t in (query, key, value))
    count, heads, head_dim = query.shape
    if head_dim > tiles.LARGEST_HEAD_DIM_OF_TWO_BINS:
        raise ValueError(
            f"two_bin_attention: query has head_dim {head_dim}, the Triton kernels of two bins take up to 128"
        )
    scale = in_log2(1 / math.sqrt(head_dim) if scale is None else scale)
    rows = count + nested.small
    out = torch.empty(rows, heads, head_dim, dtype=query.dtype, device=query.device)
    lse = accumulator(heads, rows, like=query) if save_lse else None
    cu_seqlens = nested.cu_seqlens_large.contiguous(), nested.cu_seqlens_small.contiguous()
    longest, samples = nested.max_seqlen_large, cu_seqlens[0].shape[0] - 1
    held = sum(parts(head_dim))
    tile = tiles.attention_tiles("two_bin_attention", query, held, longest, longest, heads * samples)
    launch(
        _two_bin_attention, (cdiv(longest, tile["BLOCK_M"]), heads, samples),
        query, key, value, out, lse, *cu_seqlens, count, rows, scale, **layout(query, key, value), **tile,
    )  # fmt: skip
    return (out, lse) if save_lse else out


@triton.jit
def _two_bin_attention_bwd_query(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr,
    cu_seqlens_large_ptr, cu_seqlens_small_ptr, total_large, rows, scale, score_scale,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M queries in both bins, and delta of both, which the keys' kernel reads."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first, large, first_small, small = bin_ranges(
        cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, total_large
    )
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= large:
        return
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first * STRIDE_V + head // GROUP * HEAD_V

    grad_query0 = tl.zeros((BLOCK_M, D0), tl.float32)
    grad_query1 = tl.zeros((BLOCK_M, D1), tl.float32) if D1 > 0 else grad_query0
    query0 = load_part(q_ptr, m, large, STRIDE_Q, 0, D0, D)
    query1 = load_part(q_ptr, m, large, STRIDE_Q, D0, D1, D) if D1 > 0 else query0
    split = tl.where(tl.program_id(0) * BLOCK_M < small, small, 0)
    statistics = lse_ptr + head.to(tl.int64) * rows + m
    lse_small = tl.load(statistics + first_small, mask=m < small, other=float("inf"))
    small0, small1, delta_small = load_delta(
        out_ptr, grad_ptr, delta_ptr, first_small, m, small, head, rows, H, D, D0, D1
    )
    lse = tl.load(statistics + first, mask=m < large, other=float("inf"))
    grad0, grad1, delta = load_delta(out_ptr, grad_ptr, delta_ptr, first, m, large, head, rows, H, D, D0, D1)
    grad_query0, grad_query1 = grad_of_queries(
        query0, query1, grad0, grad1, lse, delta, small0, small1, lse_small, delta_small,
        grad_query0, grad_query1, k_ptr, v_ptr, 0, split, scale,
        STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, True,
    )  # fmt: skip
    grad_query0, grad_query1 = grad_of_queries(
        query0, query1, grad0, grad1, lse, delta, grad0, grad1, lse, delta,
        grad_query0, grad_query1, k_ptr, v_ptr, split, large, scale,
        STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, False,
    )  # fmt: skip
    grad_q_ptr += first * (H * D) + head * D
    store_part(grad_q_ptr, grad_query0 * score_scale, m, large, H * D, 0, D0, D)
    if D1 > 0:
        store_part(grad_q_ptr, grad_query1 * score_scale, m, large, H * D, D0, D1, D)


@triton.jit
def _two_bin_attention_bwd_key(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    cu_seqlens_large_ptr, cu_seqlens_small_ptr, total_large, rows, scale, score_scale,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_N keys and values in both bins by one head of query."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first, large, first_small, small = bin_ranges(
        cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, total_large
    )
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if tl.program_id(0) * BLOCK_N >= large:
        return
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first * STRIDE_V + head // GROUP * HEAD_V
    grad_ptr += head * D
    lse_ptr += head.to(tl.int64) * rows
    delta_ptr += head.to(tl.int64) * rows

    key0 = load_part(k_ptr, n, large, STRIDE_K, 0, D0, D)
    value0 = load_part(v_ptr, n, large, STRIDE_V, 0, D0, D)
    grad_key0 = tl.zeros((BLOCK_N, D0), tl.float32)
    grad_value0 = tl.zeros((BLOCK_N, D0), tl.float32)
    key1, value1, grad_key1, grad_value1 = key0, value0, grad_key0, grad_value0
    if D1 > 0:
        key1 = load_part(k_ptr, n, large, STRIDE_K, D0, D1, D)
        value1 = load_part(v_ptr, n, large, STRIDE_V, D0, D1, D)
        grad_key1 = tl.zeros((BLOCK_N, D1), tl.float32)
        grad_value1 = tl.zeros((BLOCK_N, D1), tl.float32)
    split = tl.where(tl.program_id(0) * BLOCK_N < small, small, 0)
    grad_key0, grad_key1, grad_value0, grad_value1 = grads_of_keys(
        key0, key1, value0, value1, grad_key0, grad_key1, grad_value0, grad_value1, q_ptr, grad_ptr, lse_ptr,
        delta_ptr, first, first_small, n, small, 0, split, scale,
        STRIDE_Q, H * D, D, D0, D1, BLOCK_M, True,
    )  # fmt: skip
    grad_key0, grad_key1, grad_value0, grad_value1 = grads_of_keys(
        key0, key1, value0, value1, grad_key0, grad_key1, grad_value0, grad_value1, q_ptr, grad_ptr, lse_ptr,
        delta_ptr, first, first_small, n, small, split, large, scale,
        STRIDE_Q, H * D, D, D0, D1, BLOCK_M, False,
    )  # fmt: skip

    packed = first * (H * D) + head * D
    store_part(grad_k_ptr + packed, grad_key0 * score_scale, n, large, H * D, 0, D0, D)
    store_part(grad_v_ptr + packed, grad_value0, n, large, H * D, 0, D0, D)
    if D1 > 0:
        store_part(grad_k_ptr + packed, grad_key1 * score_scale, n, large, H * D, D0, D1, D)
        store_part(grad_v_ptr + packed, grad_value1, n, large, H * D, D0, D1, D)


def two_bin_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    nested: Nested,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [T, H, d], key and value [T, h, d]; out [T + S, H, d], lse from the forward pass."""
    query, key, value = (unit_rows(t) for t in (query, key, value))
    count, heads, head_dim = query.shape
    score_scale = 1 / math.sqrt(head_dim) if scale is None else scale
    grad_out, out = grad_out.contiguous(), out.contiguous()
    grads = [of_each_head(t, heads) for t in (query, key, value)]
    rows = count + nested.small
    delta = accumulator(heads, rows, like=query)
    cu_seqlens = nested.cu_seqlens_large.contiguous(), nested.cu_seqlens_small.contiguous()
    shared = *cu_seqlens, count, rows, in_log2(score_scale), score_scale
    fixed, held = layout(query, key, value), sum(parts(head_dim))
    longest, samples = nested.max_seqlen_large, cu_seqlens[0].shape[0] - 1
    tile = tiles.attention_tiles("two_bin_attention_bwd_query", query, held)
    launch(
        _two_bin_attention_bwd_query, (cdiv(longest, tile["BLOCK_M"]), heads, samples),
        query, key, value, out, grad_out, lse, delta, grads[0], *shared, **fixed, **tile,
    )  # fmt: skip
    tile = tiles.attention_tiles("two_bin_attention_bwd_key", query, held)
    launch(
        _two_bin_attention_bwd_key, (cdiv(longest, tile["BLOCK_N"]), heads, samples),
        query, key, value, grad_out, lse, delta, grads[1], grads[2], *shared, **fixed, **tile,
    )  # fmt: skip
    return grads[0], of_shared(grads[1], key), of_shared(grads[2], value)
