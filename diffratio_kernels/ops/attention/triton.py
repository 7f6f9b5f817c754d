"""Packed (varlen) attention forward: self and ragged cross, online softmax.

A head_dim that is no power of two is held in two parts, 72 = 64 + 16 (of which 8 are used): padding it to 128
would issue 128/72 of the matrix work. Strides are constants: as runtime arguments a head stride of 72 is not
known to be a multiple of 8, and every load falls to 2 bytes.

Backward: one kernel for queries, one for keys; each gradient is summed by one program for a head of query.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton import tiles
from ..._triton.launch import accumulator, cdiv, launch, next_power_of_2, unit_rows
from ...types import Seqlens

LOG2_E = 1.4426950408889634


def parts(head_dim: int) -> tuple[int, int]:
    """Widths of the two parts of a head: powers of two, at least 16, the second 0 where one is enough."""
    whole = next_power_of_2(head_dim)
    if whole == head_dim or head_dim < 16:
        return max(whole, 16), 0
    return whole // 2, max(next_power_of_2(head_dim - whole // 2), 16)


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
def key_range(cu_seqlens_k_ptr, key_lengths_ptr, sample):
    """First packed row of a sample's keys, and how many of them count."""
    first = tl.load(cu_seqlens_k_ptr + sample)
    if key_lengths_ptr is None:
        count = tl.load(cu_seqlens_k_ptr + sample + 1) - first
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
    tools/aot/descriptors.py).
    """
    for start in range(begin, end, BLOCK_N):
        out0, out1, largest, total = _step(
            query0, query1, out0, out1, largest, total, k_ptr, v_ptr, start, end, scale,
            STRIDE_K, STRIDE_V, D, D0, D1, BLOCK_N, True,
        )  # fmt: skip
    return out0, out1, largest, total


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
    scale = LOG2_E * (1 / math.sqrt(head_dim) if scale is None else scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = accumulator(heads, rows, like=query) if save_lse else None
    tile = tiles.attention_tiles("attention_fwd", query, sum(parts(head_dim)))
    cu_seqlens_q, cu_seqlens_k, key_lengths = contiguous(seqlens)
    launch(
        _attention_fwd, (cdiv(seqlens.max_seqlen_q, tile["BLOCK_M"]), heads, cu_seqlens_q.shape[0] - 1),
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
    packed = first * (H * D) + head * D
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first_key * STRIDE_V + head // GROUP * HEAD_V

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
    cu_seqlens_q_ptr, cu_seqlens_k_ptr, key_lengths_ptr, rows, scale, score_scale,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    STRIDE_Q: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr,
    HEAD_Q: tl.constexpr, HEAD_K: tl.constexpr, HEAD_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_N keys and values by one head of query; keys that do not count get zeros."""
    head, sample = tl.program_id(1), tl.program_id(2)
    first = tl.load(cu_seqlens_q_ptr + sample)
    queries = tl.load(cu_seqlens_q_ptr + sample + 1) - first
    first = first.to(tl.int64)
    first_key, keys = key_range(cu_seqlens_k_ptr, key_lengths_ptr, sample)
    room = tl.load(cu_seqlens_k_ptr + sample + 1) - first_key.to(tl.int32)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if tl.program_id(0) * BLOCK_N >= room:
        return
    packed = first * (H * D) + head * D
    packed_key = first_key * (H * D) + head * D
    q_ptr += first * STRIDE_Q + head * HEAD_Q
    k_ptr += first_key * STRIDE_K + head // GROUP * HEAD_K
    v_ptr += first_key * STRIDE_V + head // GROUP * HEAD_V

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


def of_each_head(t: Tensor, heads: int) -> Tensor:
    """Where heads of query write the gradient of key or value [S, h, d]: those that share it a part each."""
    dtype = t.dtype if t.shape[1] == heads else torch.float32
    return torch.empty(t.shape[0], heads, t.shape[2], dtype=dtype, device=t.device)


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
    query, key, value = (unit_rows(t) for t in (query, key, value))
    rows, heads, head_dim = query.shape
    score_scale = 1 / math.sqrt(head_dim) if scale is None else scale
    grad_out, out = grad_out.contiguous(), out.contiguous()
    grad_query, grad_key, grad_value = (of_each_head(t, heads) for t in (query, key, value))
    delta = accumulator(heads, rows, like=query)
    shared = *contiguous(seqlens), rows, LOG2_E * score_scale, score_scale
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
