"""Packed (varlen) attention forward: self and ragged cross, online softmax.

Backward: one kernel for queries, one for keys; each gradient is summed by one program for a head of query.
"""

import math
from collections.abc import Callable

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
from ...types import Seqlens


def in_log2(scale: float) -> float:
    """The scale of scores in units of log2, at least the smallest normal fp32: -inf times 0 is NaN."""
    return max(scale * math.log2(math.e), torch.finfo(torch.float32).tiny)


@triton.jit
def key_range(cu_seqlens_k_ptr, key_lengths_ptr, sample):
    """First packed row of a sample's keys, and how many of them count."""
    first = tl.load(cu_seqlens_k_ptr + sample)
    if key_lengths_ptr is None:
        count = tl.load(cu_seqlens_k_ptr + sample + 1) - first
    else:
        count = tl.load(key_lengths_ptr + sample)
    return first.to(tl.int64), count


@triton.jit
def _attention_fwd(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, key_lengths_ptr, rows, scale,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, sample = tl.program_id(1), tl.program_id(2)
    first = tl.load(cu_seqlens_q_ptr + sample)
    queries = tl.load(cu_seqlens_q_ptr + sample + 1) - first
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= queries:
        return
    first = first.to(tl.int64)
    first_key, keys = key_range(cu_seqlens_k_ptr, key_lengths_ptr, sample)
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first_key * STRIDE_V + head // GROUP * HEAD_V

    query0 = load_part(q_ptr, m, queries, STRIDE_Q, 0, D0, D)
    query1 = load_part(q_ptr, m, queries, STRIDE_Q, D0, D1, D) if D1 > 0 else query0
    out0 = tl.zeros((BLOCK_M, D0), tl.float32)
    out1 = tl.zeros((BLOCK_M, D1), tl.float32) if D1 > 0 else out0
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out0, out1, largest, total = attend(
        query0, query1, out0, out1, largest, total, k_ptr, v_ptr, 0, keys, scale,
        STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N,
    )  # fmt: skip

    total = tl.where(total == 0, 1.0, total)  # a sample without keys: zeros
    out_ptr += first * (H * D) + head * D
    store_part(out_ptr, out0 / total[:, None], m, queries, H * D, 0, D0, D)
    if D1 > 0:
        store_part(out_ptr, out1 / total[:, None], m, queries, H * D, D0, D1, D)
    if lse_ptr is not None:
        at = lse_ptr + head.to(tl.int64) * rows + first + m
        tl.store(at, largest + tl.log2(total), mask=m < queries)


def layout(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """What a kernel must know at compile time about query [T, H, d], key and value [S, h, d]."""
    head_dim = query.shape[2]
    first, second = parts(head_dim)
    return {
        "H": query.shape[1], "GROUP": query.shape[1] // key.shape[1],
        "D": head_dim, "D0": first, "D1": second,
        "STRIDE_Q": query.stride(0), "STRIDE_K": key.stride(0), "STRIDE_V": value.stride(0),
        "HEAD_Q": query.stride(1), "HEAD_K": key.stride(1), "HEAD_V": value.stride(1),
    }  # fmt: skip


def attention(
    query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None, save_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """query [T, H, d]; key, value [S, h, d] -> [T, H, d].

    With save_lse also log2 of the sum of exponentials [H, T] fp32, which the backward pass needs.
    """
    query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
    rows, heads, head_dim = query.shape
    if head_dim > tiles.LARGEST_HEAD_DIM:
        raise ValueError(f"attention: query has head_dim {head_dim}, the Triton kernels take up to 256")
    scale = in_log2(1 / math.sqrt(head_dim) if scale is None else scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = accumulator(heads, rows, like=query) if save_lse else None
    cu_seqlens_q, cu_seqlens_k, key_lengths = contiguous(seqlens)
    longest, samples = (seqlens.max_seqlen_q, seqlens.max_seqlen_k), cu_seqlens_q.shape[0] - 1
    tile = tiles.attention_tiles("attention_fwd", query, sum(parts(head_dim)), *longest, heads * samples)
    launch(
        _attention_fwd, (cdiv(longest[0], tile["BLOCK_M"]), heads, samples),
        query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, key_lengths, rows, scale,
        **layout(query, key, value), **tile,
    )  # fmt: skip
    return (out, lse) if save_lse else out


def contiguous(seqlens: Seqlens) -> tuple[Tensor, Tensor, Tensor | None]:
    """cu_seqlens_q, cu_seqlens_k and key_lengths as kernels read them."""
    lengths = seqlens.key_lengths
    return (
        seqlens.cu_seqlens_q.contiguous(),
        seqlens.cu_seqlens_k.contiguous(),
        None if lengths is None else lengths.contiguous(),
    )


@triton.jit
def _attention_bwd_query(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr,
    cu_seqlens_q_ptr, cu_seqlens_k_ptr, key_lengths_ptr, rows, scale, score_scale,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M queries, and delta = sum(out * grad_out), which the keys' kernel reads."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first = tl.load(cu_seqlens_q_ptr + sample)
    queries = tl.load(cu_seqlens_q_ptr + sample + 1) - first
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= queries:
        return
    first = first.to(tl.int64)
    first_key, keys = key_range(cu_seqlens_k_ptr, key_lengths_ptr, sample)
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first_key * STRIDE_V + head // GROUP * HEAD_V

    grad0, grad1, delta = load_delta(
        out_ptr, grad_ptr, delta_ptr, first, m, queries, head, rows, H, D, D0, D1
    )
    lse = tl.load(lse_ptr + head.to(tl.int64) * rows + first + m, mask=m < queries, other=float("inf"))
    query0 = load_part(q_ptr, m, queries, STRIDE_Q, 0, D0, D)
    query1 = load_part(q_ptr, m, queries, STRIDE_Q, D0, D1, D) if D1 > 0 else query0
    grad_query0 = tl.zeros((BLOCK_M, D0), tl.float32)
    grad_query1 = tl.zeros((BLOCK_M, D1), tl.float32) if D1 > 0 else grad_query0
    grad_query0, grad_query1 = grad_of_queries(
        query0, query1, grad0, grad1, lse, delta, grad0, grad1, lse, delta,
        grad_query0, grad_query1, k_ptr, v_ptr, 0, keys, scale,
        STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, False,
    )  # fmt: skip
    grad_q_ptr += first * (H * D) + head * D
    store_part(grad_q_ptr, grad_query0 * score_scale, m, queries, H * D, 0, D0, D)
    if D1 > 0:
        store_part(grad_q_ptr, grad_query1 * score_scale, m, queries, H * D, D0, D1, D)


@triton.jit
def _attention_bwd_key(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    cu_seqlens_q_ptr, cu_seqlens_k_ptr, key_lengths_ptr, rows, scale, score_scale,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_N keys and values by one head of query.

    Keys that do not count keep the zeros of their memory: to choose zeros here made ptxas 12.8 wait for every
    matrix instruction of the loop.
    """
    head, sample = tl.program_id(1), tl.program_id(2)
    first = tl.load(cu_seqlens_q_ptr + sample)
    queries = tl.load(cu_seqlens_q_ptr + sample + 1) - first
    first = first.to(tl.int64)
    first_key, keys = key_range(cu_seqlens_k_ptr, key_lengths_ptr, sample)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if tl.program_id(0) * BLOCK_N >= keys:
        return
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first_key * STRIDE_V + head // GROUP * HEAD_V
    grad_ptr += head * D
    lse_ptr += head.to(tl.int64) * rows
    delta_ptr += head.to(tl.int64) * rows

    key0 = load_part(k_ptr, n, keys, STRIDE_K, 0, D0, D)
    value0 = load_part(v_ptr, n, keys, STRIDE_V, 0, D0, D)
    grad_key0 = tl.zeros((BLOCK_N, D0), tl.float32)
    grad_value0 = tl.zeros((BLOCK_N, D0), tl.float32)
    key1, value1, grad_key1, grad_value1 = key0, value0, grad_key0, grad_value0
    if D1 > 0:
        key1 = load_part(k_ptr, n, keys, STRIDE_K, D0, D1, D)
        value1 = load_part(v_ptr, n, keys, STRIDE_V, D0, D1, D)
        grad_key1 = tl.zeros((BLOCK_N, D1), tl.float32)
        grad_value1 = tl.zeros((BLOCK_N, D1), tl.float32)
    grad_key0, grad_key1, grad_value0, grad_value1 = grads_of_keys(
        key0, key1, value0, value1, grad_key0, grad_key1, grad_value0, grad_value1, q_ptr, grad_ptr, lse_ptr,
        delta_ptr, first, first, n, keys, 0, queries, scale, STRIDE_Q, H * D, D, D0, D1, BLOCK_M, False,
    )  # fmt: skip

    packed = first_key * (H * D) + head * D
    store_part(grad_k_ptr + packed, grad_key0 * score_scale, n, keys, H * D, 0, D0, D)
    store_part(grad_v_ptr + packed, grad_value0, n, keys, H * D, 0, D0, D)
    if D1 > 0:
        store_part(grad_k_ptr + packed, grad_key1 * score_scale, n, keys, H * D, D0, D1, D)
        store_part(grad_v_ptr + packed, grad_value1, n, keys, H * D, D0, D1, D)


def of_each_head(t: Tensor, heads: int, make: Callable = torch.empty) -> Tensor:
    """Where heads of query write the gradient of key or value [S, h, d]: those that share it a part each."""
    dtype = t.dtype if t.shape[1] == heads else torch.float32
    return make(t.shape[0], heads, t.shape[2], dtype=dtype, device=t.device)


def of_shared(parts: Tensor, t: Tensor) -> Tensor:
    """The gradient of key or value [S, h, d] from what they wrote [S, H, d], added always in one order."""
    if parts.shape == t.shape:
        return parts
    return parts.unflatten(1, (t.shape[1], -1)).sum(2).to(t.dtype)


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    seqlens: Seqlens,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [T, H, d], key and value [S, h, d]; out and lse from the forward pass."""
    query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
    rows, heads, head_dim = query.shape
    score_scale = 1 / math.sqrt(head_dim) if scale is None else scale
    grad_out, out = grad_out.contiguous(), out.contiguous()
    make = torch.empty if seqlens.key_lengths is None else torch.zeros
    grad_key, grad_value = (of_each_head(t, heads, make) for t in (key, value))
    grad_query = torch.empty_like(out)
    delta = accumulator(heads, rows, like=query)
    shared = *contiguous(seqlens), rows, in_log2(score_scale), score_scale
    samples = seqlens.cu_seqlens_q.shape[0] - 1
    fixed, held = layout(query, key, value), sum(parts(head_dim))
    tile = tiles.attention_tiles("attention_bwd_query", query, held)
    launch(
        _attention_bwd_query, (cdiv(seqlens.max_seqlen_q, tile["BLOCK_M"]), heads, samples),
        query, key, value, out, grad_out, lse, delta, grad_query, *shared, **fixed, **tile,
    )  # fmt: skip
    tile = tiles.attention_tiles("attention_bwd_key", query, held)
    launch(
        _attention_bwd_key, (cdiv(seqlens.max_seqlen_k, tile["BLOCK_N"]), heads, samples),
        query, key, value, grad_out, lse, delta, grad_key, grad_value, *shared, **fixed, **tile,
    )  # fmt: skip
    return grad_query, of_shared(grad_key, key), of_shared(grad_value, value)
