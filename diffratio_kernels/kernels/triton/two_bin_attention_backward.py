"""Backward of two_bin_attention: the scores of the small set are computed once for both bins, and each
gradient is summed by one program."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import config
from .attention import LOG2_E, layout, load_part, parts, store_part
from .attention_backward import product
from .launch import accumulator, launch, unit_rows
from .two_bin_attention import bin_ranges


@triton.jit
def _load_delta(
    out_ptr, grad_ptr, delta_ptr, first, m, count, head, rows,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    """Incoming gradients of the queries m < count, and delta = sum(out * grad), which is stored too."""
    packed = first * (H * D) + head * D
    grad0 = load_part(grad_ptr + packed, m, count, H * D, 0, D0, D, True)
    out = load_part(out_ptr + packed, m, count, H * D, 0, D0, D, True)
    delta = tl.sum(grad0.to(tl.float32) * out.to(tl.float32), axis=1)
    grad1 = grad0
    if D1 > 0:
        grad1 = load_part(grad_ptr + packed, m, count, H * D, D0, D1, D, True)
        out = load_part(out_ptr + packed, m, count, H * D, D0, D1, D, True)
        delta += tl.sum(grad1.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_ptr + head.to(tl.int64) * rows + first + m, delta, mask=m < count)
    return grad0, grad1, delta


@triton.jit
def _query_step(
    query0, query1, grad0, grad1, lse, delta, small0, small1, lse_small, delta_small,
    grad_query0, grad_query1, k_ptr, v_ptr, start, keys, scale,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_N: tl.constexpr, MASK: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    n = start + tl.arange(0, BLOCK_N)
    key0 = load_part(k_ptr, n, keys, STRIDE_K, 0, D0, D, MASK)
    key1 = load_part(k_ptr, n, keys, STRIDE_K, D0, D1, D, MASK) if D1 > 0 else key0
    value0 = load_part(v_ptr, n, keys, STRIDE_V, 0, D0, D, MASK)
    value1 = load_part(v_ptr, n, keys, STRIDE_V, D0, D1, D, MASK) if D1 > 0 else value0
    scores = product(query0, query1, key0, key1, D1) * scale
    if MASK:
        scores = tl.where(n[None, :] < keys, scores, float("-inf"))
    grad_scores = tl.exp2(scores - lse[:, None])
    grad_scores *= product(grad0, grad1, value0, value1, D1) - delta[:, None]
    if BOTH:
        weights = tl.exp2(scores - lse_small[:, None])
        grad_scores += weights * (product(small0, small1, value0, value1, D1) - delta_small[:, None])
    grad_scores = grad_scores.to(key0.dtype)
    grad_query0 = tl.dot(grad_scores, key0, grad_query0, input_precision="ieee")
    if D1 > 0:
        grad_query1 = tl.dot(grad_scores, key1, grad_query1, input_precision="ieee")
    return grad_query0, grad_query1


@triton.jit
def _grad_query(
    query0, query1, grad0, grad1, lse, delta, small0, small1, lse_small, delta_small,
    grad_query0, grad_query1, k_ptr, v_ptr, begin, end, scale,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_N: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """What keys begin..end add to the gradient of queries, in the large bin or in both."""
    whole = begin + (end - begin) // BLOCK_N * BLOCK_N
    for start in range(begin, whole, BLOCK_N):
        grad_query0, grad_query1 = _query_step(
            query0, query1, grad0, grad1, lse, delta, small0, small1, lse_small, delta_small,
            grad_query0, grad_query1, k_ptr, v_ptr, start, end, scale,
            STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, False, BOTH,
        )  # fmt: skip
    if whole < end:
        grad_query0, grad_query1 = _query_step(
            query0, query1, grad0, grad1, lse, delta, small0, small1, lse_small, delta_small,
            grad_query0, grad_query1, k_ptr, v_ptr, whole, end, scale,
            STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, True, BOTH,
        )  # fmt: skip
    return grad_query0, grad_query1


@triton.jit
def _two_bin_attention_bwd_query(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr,
    large_offsets_ptr, small_offsets_ptr, total_large, rows, scale, score_scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M queries in both bins, and delta of both, which the keys' kernel reads."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first, large, first_small, small = bin_ranges(large_offsets_ptr, small_offsets_ptr, sample, total_large)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= large:
        return
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first * STRIDE_K + head * HEAD_K
    v_ptr += first * STRIDE_V + head * HEAD_V

    grad_query0 = tl.zeros((BLOCK_M, D0), tl.float32)
    grad_query1 = tl.zeros((BLOCK_M, D1), tl.float32) if D1 > 0 else grad_query0
    query0 = load_part(q_ptr, m, large, STRIDE_Q, 0, D0, D, True)
    query1 = load_part(q_ptr, m, large, STRIDE_Q, D0, D1, D, True) if D1 > 0 else query0
    split = tl.where(tl.program_id(0) * BLOCK_M < small, small, 0)
    statistics = lse_ptr + head.to(tl.int64) * rows + m
    lse_small = tl.load(statistics + first_small, mask=m < small, other=float("inf"))
    small0, small1, delta_small = _load_delta(
        out_ptr, grad_ptr, delta_ptr, first_small, m, small, head, rows, H, D, D0, D1
    )
    lse = tl.load(statistics + first, mask=m < large, other=float("inf"))
    grad0, grad1, delta = _load_delta(out_ptr, grad_ptr, delta_ptr, first, m, large, head, rows, H, D, D0, D1)
    grad_query0, grad_query1 = _grad_query(
        query0, query1, grad0, grad1, lse, delta, small0, small1, lse_small, delta_small,
        grad_query0, grad_query1, k_ptr, v_ptr, 0, split, scale,
        STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, True,
    )  # fmt: skip
    grad_query0, grad_query1 = _grad_query(
        query0, query1, grad0, grad1, lse, delta, grad0, grad1, lse, delta,
        grad_query0, grad_query1, k_ptr, v_ptr, split, large, scale,
        STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, False,
    )  # fmt: skip
    grad_q_ptr += first * (H * D) + head * D
    store_part(grad_q_ptr, grad_query0 * score_scale, m, large, H * D, 0, D0, D)
    if D1 > 0:
        store_part(grad_q_ptr, grad_query1 * score_scale, m, large, H * D, D0, D1, D)


@triton.jit
def _key_step(
    key0, key1, value0, value1, grad_key0, grad_key1, grad_value0, grad_value1, q_ptr, grad_ptr, lse_ptr,
    delta_ptr, first, first_small, n, small, start, end, scale, STRIDE_Q: tl.constexpr, STRIDE: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_M: tl.constexpr,
    BOTH: tl.constexpr,
):  # fmt: skip
    m = start + tl.arange(0, BLOCK_M)
    query0 = load_part(q_ptr, m, end, STRIDE_Q, 0, D0, D, True)
    query1 = load_part(q_ptr, m, end, STRIDE_Q, D0, D1, D, True) if D1 > 0 else query0
    scores = product(key0, key1, query0, query1, D1) * scale
    grad_scores = tl.zeros(scores.shape, tl.float32)
    for bin in tl.static_range(2 if BOTH else 1):
        row = first if bin == 0 else first_small
        lse = tl.load(lse_ptr + row + m, mask=m < end, other=float("inf"))
        delta = tl.load(delta_ptr + row + m, mask=m < end, other=0.0)
        grad0 = load_part(grad_ptr + row * STRIDE, m, end, STRIDE, 0, D0, D, True)
        grad1 = load_part(grad_ptr + row * STRIDE, m, end, STRIDE, D0, D1, D, True) if D1 > 0 else grad0
        weights = tl.exp2(scores - lse[None, :])
        if bin == 1:
            weights = tl.where(n[:, None] < small, weights, 0.0)
        grad_scores += weights * (product(value0, value1, grad0, grad1, D1) - delta[None, :])
        weights = weights.to(grad0.dtype)
        grad_value0 = tl.dot(weights, grad0, grad_value0, input_precision="ieee")
        if D1 > 0:
            grad_value1 = tl.dot(weights, grad1, grad_value1, input_precision="ieee")
    grad_scores = grad_scores.to(query0.dtype)
    grad_key0 = tl.dot(grad_scores, query0, grad_key0, input_precision="ieee")
    if D1 > 0:
        grad_key1 = tl.dot(grad_scores, query1, grad_key1, input_precision="ieee")
    return grad_key0, grad_key1, grad_value0, grad_value1


@triton.jit
def _two_bin_attention_bwd_key(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    large_offsets_ptr, small_offsets_ptr, total_large, rows, scale, score_scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_N keys and values in both bins."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first, large, first_small, small = bin_ranges(large_offsets_ptr, small_offsets_ptr, sample, total_large)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if tl.program_id(0) * BLOCK_N >= large:
        return
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first * STRIDE_K + head * HEAD_K
    v_ptr += first * STRIDE_V + head * HEAD_V
    grad_ptr += head * D
    lse_ptr += head.to(tl.int64) * rows
    delta_ptr += head.to(tl.int64) * rows

    key0 = load_part(k_ptr, n, large, STRIDE_K, 0, D0, D, True)
    value0 = load_part(v_ptr, n, large, STRIDE_V, 0, D0, D, True)
    grad_key0 = tl.zeros((BLOCK_N, D0), tl.float32)
    grad_value0 = tl.zeros((BLOCK_N, D0), tl.float32)
    key1, value1, grad_key1, grad_value1 = key0, value0, grad_key0, grad_value0
    if D1 > 0:
        key1 = load_part(k_ptr, n, large, STRIDE_K, D0, D1, D, True)
        value1 = load_part(v_ptr, n, large, STRIDE_V, D0, D1, D, True)
        grad_key1 = tl.zeros((BLOCK_N, D1), tl.float32)
        grad_value1 = tl.zeros((BLOCK_N, D1), tl.float32)
    split = tl.where(tl.program_id(0) * BLOCK_N < small, small, 0)
    for start in range(0, split, BLOCK_M):
        grad_key0, grad_key1, grad_value0, grad_value1 = _key_step(
            key0, key1, value0, value1, grad_key0, grad_key1, grad_value0, grad_value1, q_ptr, grad_ptr,
            lse_ptr, delta_ptr, first, first_small, n, small, start, split, scale,
            STRIDE_Q, H * D, D, D0, D1, BLOCK_M, True,
        )  # fmt: skip
    for start in range(split, large, BLOCK_M):
        grad_key0, grad_key1, grad_value0, grad_value1 = _key_step(
            key0, key1, value0, value1, grad_key0, grad_key1, grad_value0, grad_value1, q_ptr, grad_ptr,
            lse_ptr, delta_ptr, first, first_small, n, small, start, large, scale,
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
    large_offsets: Tensor,
    small_offsets: Tensor,
    longest_large: int,
    longest_small: int,
    small: int,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key, value [T, H, d]; out [T + S, H, d] and lse from the forward pass."""
    query, key, value = (unit_rows(t) for t in (query, key, value))
    count, heads, head_dim = query.shape
    score_scale = 1 / math.sqrt(head_dim) if scale is None else scale
    grad_out, out = grad_out.contiguous(), out.contiguous()
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)]
    delta = accumulator(heads, count + small, like=query)
    offsets = large_offsets.contiguous(), small_offsets.contiguous()
    shared = *offsets, count, count + small, LOG2_E * score_scale, score_scale
    fixed, held = layout(query, key, value), sum(parts(head_dim))
    samples = large_offsets.shape[0] - 1
    tiles = config.attention_tiles("two_bin_attention_bwd_query", query, held)
    launch(
        _two_bin_attention_bwd_query, (triton.cdiv(longest_large, tiles["BLOCK_M"]), heads, samples),
        query, key, value, out, grad_out, lse, delta, grads[0], *shared, **fixed, **tiles,
    )  # fmt: skip
    tiles = config.attention_tiles("two_bin_attention_bwd_key", query, held)
    launch(
        _two_bin_attention_bwd_key, (triton.cdiv(longest_large, tiles["BLOCK_N"]), heads, samples),
        query, key, value, grad_out, lse, delta, grads[1], grads[2], *shared, **fixed, **tiles,
    )  # fmt: skip
    return tuple(grads)
