"""Packed (varlen) attention forward: self and ragged cross, online softmax.

A head_dim that is no power of two is held in two parts, 72 = 64 + 16 (of which 8 are used): padding it to 128
would issue 128/72 of the matrix work. Strides are constants: as runtime arguments a head stride of 72 is not
known to be a multiple of 8, and every load falls to 2 bytes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import config
from .launch import accumulator, launch, unit_rows

LOG2_E = 1.4426950408889634


def parts(head_dim: int) -> tuple[int, int]:
    """Widths of the two parts of a head: powers of two, at least 16, the second 0 where one is enough."""
    whole = triton.next_power_of_2(head_dim)
    if whole == head_dim or head_dim < 16:
        return max(whole, 16), 0
    return whole // 2, max(triton.next_power_of_2(head_dim - whole // 2), 16)


@triton.jit
def load_part(
    ptr, rows, count, STRIDE: tl.constexpr, FIRST: tl.constexpr, PART: tl.constexpr, D: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """[BLOCK, PART] elements from column FIRST on; zero beyond D columns and, with MASK, `count` rows."""
    column = FIRST + tl.arange(0, PART)[None, :]
    at = ptr + rows.to(tl.int64)[:, None] * STRIDE + column
    if MASK and FIRST + PART > D:
        tile = tl.load(at, mask=(rows[:, None] < count) & (column < D), other=0.0)
    elif MASK:
        tile = tl.load(at, mask=rows[:, None] < count, other=0.0)
    elif FIRST + PART > D:
        tile = tl.load(at, mask=column < D, other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def store_part(
    ptr, tile, rows, count, STRIDE: tl.constexpr, FIRST: tl.constexpr, PART: tl.constexpr, D: tl.constexpr
):
    column = FIRST + tl.arange(0, PART)[None, :]
    at = ptr + rows.to(tl.int64)[:, None] * STRIDE + column
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=(rows[:, None] < count) & (column < D))


@triton.jit
def key_range(key_offsets_ptr, key_lengths_ptr, sample):
    """First packed row of a sample's keys, and how many of them count."""
    first = tl.load(key_offsets_ptr + sample)
    if key_lengths_ptr is None:
        count = tl.load(key_offsets_ptr + sample + 1) - first
    else:
        count = tl.load(key_lengths_ptr + sample)
    return first.to(tl.int64), count


@triton.jit
def _step(
    query0, query1, out0, out1, largest, total, k_ptr, v_ptr, start, keys, scale,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_N: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """BLOCK_N more keys of the online softmax; scores in units of log2."""
    n = start + tl.arange(0, BLOCK_N)
    key = load_part(k_ptr, n, keys, STRIDE_K, 0, D0, D, MASK)
    scores = tl.dot(query0, tl.trans(key), input_precision="ieee")
    if D1 > 0:
        key = load_part(k_ptr, n, keys, STRIDE_K, D0, D1, D, MASK)
        scores = tl.dot(query1, tl.trans(key), scores, input_precision="ieee")
    scores *= scale
    if MASK:
        scores = tl.where(n[None, :] < keys, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_largest[:, None])
    decay = tl.exp2(largest - new_largest)
    total = total * decay + tl.sum(weights, axis=1)
    value = load_part(v_ptr, n, keys, STRIDE_V, 0, D0, D, MASK)
    weights = weights.to(value.dtype)
    out0 = tl.dot(weights, value, out0 * decay[:, None], input_precision="ieee")
    if D1 > 0:
        value = load_part(v_ptr, n, keys, STRIDE_V, D0, D1, D, MASK)
        out1 = tl.dot(weights, value, out1 * decay[:, None], input_precision="ieee")
    return out0, out1, new_largest, total


@triton.jit
def attend(
    query0, query1, out0, out1, largest, total, k_ptr, v_ptr, begin, end, scale,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys begin..end.

    Every step is masked: a step of its own for the last keys would be a second copy of the code outside of
    the loop, which waits for its loads, and whose second part of V ptxas 12.8 addresses wrongly (see
    aot/descriptors.py).
    """
    for start in range(begin, end, BLOCK_N):
        out0, out1, largest, total = _step(
            query0, query1, out0, out1, largest, total, k_ptr, v_ptr, start, end, scale,
            STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, True,
        )  # fmt: skip
    return out0, out1, largest, total


@triton.jit
def _attention_fwd(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, query_offsets_ptr, key_offsets_ptr, key_lengths_ptr, rows, scale,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, sample = tl.program_id(1), tl.program_id(2)
    first = tl.load(query_offsets_ptr + sample)
    queries = tl.load(query_offsets_ptr + sample + 1) - first
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= queries:
        return
    first = first.to(tl.int64)
    first_key, keys = key_range(key_offsets_ptr, key_lengths_ptr, sample)
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head * HEAD_K
    v_ptr += first_key * STRIDE_V + head * HEAD_V

    query0 = load_part(q_ptr, m, queries, STRIDE_Q, 0, D0, D, True)
    query1 = load_part(q_ptr, m, queries, STRIDE_Q, D0, D1, D, True) if D1 > 0 else query0
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
    """What a kernel must know at compile time about query [T, H, d], key and value [S, H, d]."""
    head_dim = query.shape[2]
    first, second = parts(head_dim)
    return {
        "H": query.shape[1], "D": head_dim, "D0": first, "D1": second,
        "STRIDE_Q": query.stride(0), "STRIDE_K": key.stride(0), "STRIDE_V": value.stride(0),
        "HEAD_Q": query.stride(1), "HEAD_K": key.stride(1), "HEAD_V": value.stride(1),
    }  # fmt: skip


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    max_query: int,
    max_key: int,
    key_lengths: Tensor | None,
    scale: float | None,
    save_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """query [T, H, d]; key, value [S, H, d]; offsets [B+1]; key_lengths [B] or None -> [T, H, d].

    With save_lse also log2 of the sum of exponentials [H, T] fp32, which the backward pass needs.
    """
    query, key, value = (unit_rows(t) for t in (query, key, value))
    query_offsets, key_offsets = query_offsets.contiguous(), key_offsets.contiguous()
    key_lengths = None if key_lengths is None else key_lengths.contiguous()
    rows, heads, head_dim = query.shape
    if head_dim > config.LARGEST_HEAD_DIM:
        raise ValueError(f"attention: query has head_dim {head_dim}, the Triton kernels take up to 256")
    scale = LOG2_E * (1 / math.sqrt(head_dim) if scale is None else scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = accumulator(heads, rows, like=query) if save_lse else None
    tiles = config.attention_tiles("attention_fwd", query, sum(parts(head_dim)))
    launch(
        _attention_fwd, (triton.cdiv(max_query, tiles["BLOCK_M"]), heads, query_offsets.shape[0] - 1),
        query, key, value, out, lse, query_offsets, key_offsets, key_lengths, rows, scale,
        **layout(query, key, value), **tiles,
    )  # fmt: skip
    return (out, lse) if save_lse else out
