"""What attention and attention of two bins share: the loops over keys and over queries, forward and backward.

A head_dim that is no power of two is held in two parts, 72 = 64 + 16 (of which 8 are used): padding it to 128
would issue 128/72 of the matrix work. Strides are constants: as runtime arguments a head stride of 72 is not
known to be a multiple of 8, and every load falls to 2 bytes.
"""

import triton
import triton.language as tl

from .launch import next_power_of_2


def parts(head_dim: int) -> tuple[int, int]:
    """Widths of the two parts of a head: powers of two, at least 16, the second 0 where one is enough."""
    whole = next_power_of_2(head_dim)
    if whole == head_dim or head_dim < 16:
        return max(whole, 16), 0
    return whole // 2, max(next_power_of_2(head_dim - whole // 2), 16)


@triton.jit
def load_part(
    ptr, rows, count, STRIDE: tl.constexpr, FIRST: tl.constexpr, PART: tl.constexpr, D: tl.constexpr
):
    """[BLOCK, PART] elements from column FIRST on; zero beyond `count` rows and D columns."""
    column = FIRST + tl.arange(0, PART)[None, :]
    at = ptr + rows.to(tl.int64)[:, None] * STRIDE + column
    if FIRST + PART > D:
        tile = tl.load(at, mask=(rows[:, None] < count) & (column < D), other=0.0)
    else:
        tile = tl.load(at, mask=rows[:, None] < count, other=0.0)
    return tile


@triton.jit
def store_part(
    ptr, tile, rows, count, STRIDE: tl.constexpr, FIRST: tl.constexpr, PART: tl.constexpr, D: tl.constexpr
):
    column = FIRST + tl.arange(0, PART)[None, :]
    at = ptr + rows.to(tl.int64)[:, None] * STRIDE + column
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=(rows[:, None] < count) & (column < D))


@triton.jit
def product(a0, a1, b0, b1, D1: tl.constexpr):
    """a b^T over both parts of a head."""
    product = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if D1 > 0:
        product = tl.dot(a1, tl.trans(b1), product, input_precision="ieee")
    return product


@triton.jit
def mask_keys(scores, start, end, BLOCK_N: tl.constexpr, D1: tl.constexpr):
    """-inf for keys from `end` on. Whole blocks jump over that, but not behind a single product: Triton does
    not lay it out for the product after a branch (sm_80), and scores go through shared memory."""
    if D1 == 0 or start + BLOCK_N > end:
        scores = tl.where(start + tl.arange(0, BLOCK_N)[None, :] < end, scores, float("-inf"))
    return scores


@triton.jit
def attend(
    query0, query1, out0, out1, largest, total, k_ptr, v_ptr, begin, end, scale,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys begin..end; `scale` > 0 takes scores to log2, in the exponent: one FFMA.

    Values beyond the end are zeros: what lies there may be NaN, which a weight of 0 does not clear.
    """
    for start in range(begin, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        key0 = load_part(k_ptr, n, end, STRIDE_K, 0, D0, D)
        key1 = load_part(k_ptr, n, end, STRIDE_K, D0, D1, D) if D1 > 0 else key0
        scores = product(query0, query1, key0, key1, D1)
        scores = mask_keys(scores, start, end, BLOCK_N, D1)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1) * scale)
        weights = tl.exp2(scores * scale - new_largest[:, None])
        decay = tl.exp2(largest - new_largest)
        total = total * decay + tl.sum(weights, axis=1)
        largest = new_largest
        value = load_part(v_ptr, n, end, STRIDE_V, 0, D0, D)
        weights = weights.to(value.dtype)
        out0 = tl.dot(weights, value, out0 * decay[:, None], input_precision="ieee")
        if D1 > 0:
            value = load_part(v_ptr, n, end, STRIDE_V, D0, D1, D)
            out1 = tl.dot(weights, value, out1 * decay[:, None], input_precision="ieee")
    return out0, out1, largest, total


@triton.jit
def load_delta(
    out_ptr, grad_ptr, delta_ptr, first, m, count, head, rows,
    H: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    """Incoming gradients of the queries m < count, and delta = sum(out * grad), which is stored too."""
    packed = first * (H * D) + head * D
    grad0 = load_part(grad_ptr + packed, m, count, H * D, 0, D0, D)
    out = load_part(out_ptr + packed, m, count, H * D, 0, D0, D)
    delta = tl.sum(grad0.to(tl.float32) * out.to(tl.float32), axis=1)
    grad1 = grad0
    if D1 > 0:
        grad1 = load_part(grad_ptr + packed, m, count, H * D, D0, D1, D)
        out = load_part(out_ptr + packed, m, count, H * D, D0, D1, D)
        delta += tl.sum(grad1.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_ptr + head.to(tl.int64) * rows + first + m, delta, mask=m < count)
    return grad0, grad1, delta


@triton.jit
def grad_of_queries(
    query0, query1, grad0, grad1, lse, delta, small0, small1, lse_small, delta_small,
    grad_query0, grad_query1, k_ptr, v_ptr, begin, end, scale,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_N: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """What keys begin..end add to the gradient of queries; with BOTH in the small one of two bins, too."""
    for start in range(begin, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        key0 = load_part(k_ptr, n, end, STRIDE_K, 0, D0, D)
        key1 = load_part(k_ptr, n, end, STRIDE_K, D0, D1, D) if D1 > 0 else key0
        value0 = load_part(v_ptr, n, end, STRIDE_V, 0, D0, D)
        value1 = load_part(v_ptr, n, end, STRIDE_V, D0, D1, D) if D1 > 0 else value0
        scores = product(query0, query1, key0, key1, D1)
        scores = mask_keys(scores, start, end, BLOCK_N, D1)
        grad_scores = tl.exp2(scores * scale - lse[:, None])
        grad_scores *= product(grad0, grad1, value0, value1, D1) - delta[:, None]
        if BOTH:
            weights = tl.exp2(scores * scale - lse_small[:, None])
            grad_scores += weights * (product(small0, small1, value0, value1, D1) - delta_small[:, None])
        grad_scores = grad_scores.to(key0.dtype)
        grad_query0 = tl.dot(grad_scores, key0, grad_query0, input_precision="ieee")
        if D1 > 0:
            grad_query1 = tl.dot(grad_scores, key1, grad_query1, input_precision="ieee")
    return grad_query0, grad_query1


@triton.jit
def grads_of_keys(
    key0, key1, value0, value1, grad_key0, grad_key1, grad_value0, grad_value1, q_ptr, grad_ptr, lse_ptr,
    delta_ptr, first, first_small, n, small, begin, end, scale, STRIDE_Q: tl.constexpr, STRIDE: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_M: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """What queries begin..end add to the gradients of keys; with BOTH in the small one of two bins, too."""
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        query0 = load_part(q_ptr, m, end, STRIDE_Q, 0, D0, D)
        query1 = load_part(q_ptr, m, end, STRIDE_Q, D0, D1, D) if D1 > 0 else query0
        scores = product(key0, key1, query0, query1, D1) * scale
        grad_scores = tl.zeros(scores.shape, tl.float32)
        for bin in tl.static_range(2 if BOTH else 1):
            row = first if bin == 0 else first_small
            lse = tl.load(lse_ptr + row + m, mask=m < end, other=float("inf"))
            delta = tl.load(delta_ptr + row + m, mask=m < end, other=0.0)
            grad0 = load_part(grad_ptr + row * STRIDE, m, end, STRIDE, 0, D0, D)
            grad1 = load_part(grad_ptr + row * STRIDE, m, end, STRIDE, D0, D1, D) if D1 > 0 else grad0
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
