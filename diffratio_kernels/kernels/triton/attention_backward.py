"""Packed attention backward: one kernel for queries, one for keys; each gradient is summed by one program."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import config
from .attention import LOG2_E, key_range, layout, load_part, parts, store_part
from .launch import accumulator, launch, unit_rows


@triton.jit
def product(a0, a1, b0, b1, D1: tl.constexpr):
    """a b^T over both parts of a head."""
    product = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if D1 > 0:
        product = tl.dot(a1, tl.trans(b1), product, input_precision="ieee")
    return product


@triton.jit
def _query_step(
    query0, query1, grad0, grad1, grad_query0, grad_query1, lse, delta, k_ptr, v_ptr, start, keys,
    scale, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_N: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    n = start + tl.arange(0, BLOCK_N)
    key0 = load_part(k_ptr, n, keys, STRIDE_K, 0, D0, D, MASK)
    key1 = load_part(k_ptr, n, keys, STRIDE_K, D0, D1, D, MASK) if D1 > 0 else key0
    weights = tl.exp2(product(query0, query1, key0, key1, D1) * scale - lse[:, None])
    if MASK:
        weights = tl.where(n[None, :] < keys, weights, 0.0)
    value0 = load_part(v_ptr, n, keys, STRIDE_V, 0, D0, D, MASK)
    value1 = load_part(v_ptr, n, keys, STRIDE_V, D0, D1, D, MASK) if D1 > 0 else value0
    grad_scores = weights * (product(grad0, grad1, value0, value1, D1) - delta[:, None])
    grad_scores = grad_scores.to(key0.dtype)
    grad_query0 = tl.dot(grad_scores, key0, grad_query0, input_precision="ieee")
    if D1 > 0:
        grad_query1 = tl.dot(grad_scores, key1, grad_query1, input_precision="ieee")
    return grad_query0, grad_query1


@triton.jit
def _attention_bwd_query(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr,
    query_offsets_ptr, key_offsets_ptr, key_lengths_ptr, rows, scale, score_scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M queries, and delta = sum(out * grad_out), which the keys' kernel reads."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first = tl.load(query_offsets_ptr + sample)
    queries = tl.load(query_offsets_ptr + sample + 1) - first
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= queries:
        return
    first = first.to(tl.int64)
    first_key, keys = key_range(key_offsets_ptr, key_lengths_ptr, sample)
    packed = first * (H * D) + head * D
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head * HEAD_K
    v_ptr += first_key * STRIDE_V + head * HEAD_V

    grad0 = load_part(grad_ptr + packed, m, queries, H * D, 0, D0, D, True)
    out = load_part(out_ptr + packed, m, queries, H * D, 0, D0, D, True)
    delta = tl.sum(grad0.to(tl.float32) * out.to(tl.float32), axis=1)
    grad1 = grad0
    if D1 > 0:
        grad1 = load_part(grad_ptr + packed, m, queries, H * D, D0, D1, D, True)
        out = load_part(out_ptr + packed, m, queries, H * D, D0, D1, D, True)
        delta += tl.sum(grad1.to(tl.float32) * out.to(tl.float32), axis=1)
    statistics = head.to(tl.int64) * rows + first + m
    tl.store(delta_ptr + statistics, delta, mask=m < queries)
    lse = tl.load(lse_ptr + statistics, mask=m < queries, other=float("inf"))

    query0 = load_part(q_ptr, m, queries, STRIDE_Q, 0, D0, D, True)
    query1 = load_part(q_ptr, m, queries, STRIDE_Q, D0, D1, D, True) if D1 > 0 else query0
    grad_query0 = tl.zeros((BLOCK_M, D0), tl.float32)
    grad_query1 = tl.zeros((BLOCK_M, D1), tl.float32) if D1 > 0 else grad_query0
    whole = keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        grad_query0, grad_query1 = _query_step(
            query0, query1, grad0, grad1, grad_query0, grad_query1, lse, delta, k_ptr, v_ptr, start, keys,
            scale, STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, False,
        )  # fmt: skip
    if whole < keys:
        grad_query0, grad_query1 = _query_step(
            query0, query1, grad0, grad1, grad_query0, grad_query1, lse, delta, k_ptr, v_ptr, whole, keys,
            scale, STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, True,
        )  # fmt: skip
    store_part(grad_q_ptr + packed, grad_query0 * score_scale, m, queries, H * D, 0, D0, D)
    if D1 > 0:
        store_part(grad_q_ptr + packed, grad_query1 * score_scale, m, queries, H * D, D0, D1, D)


@triton.jit
def _attention_bwd_key(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    query_offsets_ptr, key_offsets_ptr, key_lengths_ptr, rows, scale, score_scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_N keys and values; keys that do not count get zeros."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first = tl.load(query_offsets_ptr + sample)
    queries = tl.load(query_offsets_ptr + sample + 1) - first
    first = first.to(tl.int64)
    first_key, keys = key_range(key_offsets_ptr, key_lengths_ptr, sample)
    room = tl.load(key_offsets_ptr + sample + 1) - first_key.to(tl.int32)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if tl.program_id(0) * BLOCK_N >= room:
        return
    packed = first * (H * D) + head * D
    packed_key = first_key * (H * D) + head * D
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head * HEAD_K
    v_ptr += first_key * STRIDE_V + head * HEAD_V

    key0 = load_part(k_ptr, n, keys, STRIDE_K, 0, D0, D, True)
    value0 = load_part(v_ptr, n, keys, STRIDE_V, 0, D0, D, True)
    grad_key0 = tl.zeros((BLOCK_N, D0), tl.float32)
    grad_value0 = tl.zeros((BLOCK_N, D0), tl.float32)
    key1, value1, grad_key1, grad_value1 = key0, value0, grad_key0, grad_value0
    if D1 > 0:
        key1 = load_part(k_ptr, n, keys, STRIDE_K, D0, D1, D, True)
        value1 = load_part(v_ptr, n, keys, STRIDE_V, D0, D1, D, True)
        grad_key1 = tl.zeros((BLOCK_N, D1), tl.float32)
        grad_value1 = tl.zeros((BLOCK_N, D1), tl.float32)
    for start in range(0, tl.where(tl.program_id(0) * BLOCK_N < keys, queries, 0), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        statistics = head.to(tl.int64) * rows + first + m
        lse = tl.load(lse_ptr + statistics, mask=m < queries, other=float("inf"))
        delta = tl.load(delta_ptr + statistics, mask=m < queries, other=0.0)
        query0 = load_part(q_ptr, m, queries, STRIDE_Q, 0, D0, D, True)
        query1 = load_part(q_ptr, m, queries, STRIDE_Q, D0, D1, D, True) if D1 > 0 else query0
        grad0 = load_part(grad_ptr + packed, m, queries, H * D, 0, D0, D, True)
        grad1 = load_part(grad_ptr + packed, m, queries, H * D, D0, D1, D, True) if D1 > 0 else grad0
        weights = tl.exp2(product(key0, key1, query0, query1, D1) * scale - lse[None, :])
        grad_scores = weights * (product(value0, value1, grad0, grad1, D1) - delta[None, :])
        weights, grad_scores = weights.to(grad0.dtype), grad_scores.to(query0.dtype)
        grad_value0 = tl.dot(weights, grad0, grad_value0, input_precision="ieee")
        grad_key0 = tl.dot(grad_scores, query0, grad_key0, input_precision="ieee")
        if D1 > 0:
            grad_value1 = tl.dot(weights, grad1, grad_value1, input_precision="ieee")
            grad_key1 = tl.dot(grad_scores, query1, grad_key1, input_precision="ieee")

    counts = n[:, None] < keys
    grad_key0 = tl.where(counts, grad_key0 * score_scale, 0.0)
    store_part(grad_k_ptr + packed_key, grad_key0, n, room, H * D, 0, D0, D)
    store_part(grad_v_ptr + packed_key, tl.where(counts, grad_value0, 0.0), n, room, H * D, 0, D0, D)
    if D1 > 0:
        grad_key1 = tl.where(counts, grad_key1 * score_scale, 0.0)
        store_part(grad_k_ptr + packed_key, grad_key1, n, room, H * D, D0, D1, D)
        store_part(grad_v_ptr + packed_key, tl.where(counts, grad_value1, 0.0), n, room, H * D, D0, D1, D)


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    max_query: int,
    max_key: int,
    key_lengths: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [T, H, d], key and value [S, H, d]; out and lse from the forward pass."""
    query, key, value = (unit_rows(t) for t in (query, key, value))
    query_offsets, key_offsets = query_offsets.contiguous(), key_offsets.contiguous()
    key_lengths = None if key_lengths is None else key_lengths.contiguous()
    rows, heads, head_dim = query.shape
    samples = query_offsets.shape[0] - 1
    score_scale = 1 / math.sqrt(head_dim) if scale is None else scale
    grad_out, out = grad_out.contiguous(), out.contiguous()
    grad_query, grad_key, grad_value = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)
    )
    delta = accumulator(heads, rows, like=query)
    shared = query_offsets, key_offsets, key_lengths, rows, LOG2_E * score_scale, score_scale
    fixed, held = layout(query, key, value), sum(parts(head_dim))
    tiles = config.attention_tiles("attention_bwd_query", query, held)
    launch(
        _attention_bwd_query, (triton.cdiv(max_query, tiles["BLOCK_M"]), heads, samples),
        query, key, value, out, grad_out, lse, delta, grad_query, *shared, **fixed, **tiles,
    )  # fmt: skip
    tiles = config.attention_tiles("attention_bwd_key", query, held)
    launch(
        _attention_bwd_key, (triton.cdiv(max_key, tiles["BLOCK_N"]), heads, samples),
        query, key, value, grad_out, lse, delta, grad_key, grad_value, *shared, **fixed, **tiles,
    )  # fmt: skip
    return grad_query, grad_key, grad_value
