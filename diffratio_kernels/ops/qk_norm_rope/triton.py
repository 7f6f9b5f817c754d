"""Query and key normed, turned by the place of their token and, with the value, written side by side.

A program has some heads of one row, across heads all of one tensor. Channels go in the pairs that turn
together.
Backward: gradients of query and key, and of the norms' weights without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import (
    ROWS_PER_SLICE,
    accumulator,
    cdiv,
    launch,
    next_power_of_2,
    unit_rows,
)
from ..._triton.slices import sample_of
from ...types import HeadNorm, Heads, PackedRows, Rope

HEADS_PER_PROGRAM = 8


@triton.jit
def _channels(p, PAIRS: tl.constexpr, HALVES: tl.constexpr):
    """The two channels of each pair; those that do not turn are paired as they come."""
    if HALVES:
        turns = p < PAIRS
        return tl.where(turns, p, 2 * p), tl.where(turns, p + PAIRS, 2 * p + 1)
    return 2 * p, 2 * p + 1


@triton.jit
def _angles(table_ptr, place, h, p, PAIRS: tl.constexpr, TABLE_HEADS: tl.constexpr, other):
    """[heads, pairs] of a table [.., 1 or H, PAIRS]; `other` for pairs that do not turn."""
    head = h if TABLE_HEADS > 1 else h * 0
    at = (place * TABLE_HEADS + head)[:, None] * PAIRS + p[None, :]
    mask = (p[None, :] < PAIRS) & (head[:, None] < TABLE_HEADS)
    return tl.load(table_ptr + at, mask=mask, other=other).to(tl.float32)


@triton.jit
def _stats(a, b, mask, count, eps, LAYER: tl.constexpr, ACROSS: tl.constexpr):
    """Mean and 1/std, or 0 and 1/rms, of each head, across heads of all: [heads, 1]."""
    mean = tl.sum(a + b, axis=1)
    if ACROSS:
        mean = tl.zeros_like(mean) + tl.sum(mean, axis=0)
    mean = mean / count if LAYER else mean * 0.0
    da = tl.where(mask, a - mean[:, None], 0.0)
    db = tl.where(mask, b - mean[:, None], 0.0)
    squares = tl.sum(da * da + db * db, axis=1)
    if ACROSS:
        squares = tl.zeros_like(squares) + tl.sum(squares, axis=0)
    return mean[:, None], tl.rsqrt(squares / count + eps)[:, None]


@triton.jit
def _heads_fwd(
    x_ptr, weight_ptr, bias_ptr, cos_ptr, sin_ptr, out_ptr, first, place, eps,
    H: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, TABLE_HEADS: tl.constexpr, HALVES: tl.constexpr,
    NORM: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """BLOCK_H heads from `first` of a row [H, D] of one tensor."""
    h = first + tl.arange(0, BLOCK_H)
    p = tl.arange(0, BLOCK_P)
    one, two = _channels(p, PAIRS, HALVES)
    mask = (h[:, None] < H) & (p[None, :] < D // 2)
    at_one = h[:, None] * D + one[None, :]
    at_two = h[:, None] * D + two[None, :]
    a = tl.load(x_ptr + at_one, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + at_two, mask=mask, other=0.0).to(tl.float32)
    if NORM != "none":
        mean, rstd = _stats(a, b, mask, H * D if ACROSS else D, eps, NORM == "layer", ACROSS)
        a = (a - mean) * rstd
        b = (b - mean) * rstd
        own_one = at_one if ACROSS else one[None, :] + h[:, None] * 0
        own_two = at_two if ACROSS else two[None, :] + h[:, None] * 0
        if weight_ptr is not None:
            a *= tl.load(weight_ptr + own_one, mask=mask, other=0.0).to(tl.float32)
            b *= tl.load(weight_ptr + own_two, mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            a += tl.load(bias_ptr + own_one, mask=mask, other=0.0).to(tl.float32)
            b += tl.load(bias_ptr + own_two, mask=mask, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    if cos_ptr is not None:
        cos = _angles(cos_ptr, place, h, p, PAIRS, TABLE_HEADS, 1.0)
        sin = _angles(sin_ptr, place, h, p, PAIRS, TABLE_HEADS, 0.0)
        tl.store(out_ptr + at_one, (a * cos - b * sin).to(dtype), mask=mask)
        tl.store(out_ptr + at_two, (a * sin + b * cos).to(dtype), mask=mask)
    else:
        tl.store(out_ptr + at_one, a.to(dtype), mask=mask)
        tl.store(out_ptr + at_two, b.to(dtype), mask=mask)


@triton.jit
def _qk_norm_rope_fwd(
    query_ptr, key_ptr, value_ptr, index_ptr, shift_ptr, query_weight_ptr, key_weight_ptr, query_bias_ptr,
    key_bias_ptr, cos_ptr, sin_ptr, out_ptr, stride_query, stride_key, stride_value, tokens, eps,
    H: tl.constexpr, KV_H: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, TABLE_HEADS: tl.constexpr,
    BY_SAMPLE: tl.constexpr, HALVES: tl.constexpr, NORM: tl.constexpr, ACROSS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    index = tl.load(index_ptr + t)
    sample = sample_of(index, tokens)
    place = index if BY_SAMPLE else index - sample * tokens
    row = t
    if shift_ptr is not None:
        row += tl.load(shift_ptr + sample)
    out_ptr += row * (H + 2 * KV_H) * D
    of_query: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    of_key: tl.constexpr = (KV_H + BLOCK_H - 1) // BLOCK_H
    if part < of_query:
        _heads_fwd(
            query_ptr + t * stride_query, query_weight_ptr, query_bias_ptr, cos_ptr, sin_ptr, out_ptr,
            part * BLOCK_H, place, eps, H, D, PAIRS, TABLE_HEADS, HALVES, NORM, ACROSS, BLOCK_H, BLOCK_P,
        )  # fmt: skip
    elif part < of_query + of_key:
        _heads_fwd(
            key_ptr + t * stride_key, key_weight_ptr, key_bias_ptr, cos_ptr, sin_ptr, out_ptr + H * D,
            (part - of_query) * BLOCK_H, place, eps,
            KV_H, D, PAIRS, TABLE_HEADS, HALVES, NORM, ACROSS, BLOCK_H, BLOCK_P,
        )  # fmt: skip
    else:
        _heads_fwd(
            value_ptr + t * stride_value, None, None, None, None, out_ptr + (H + KV_H) * D,
            (part - of_query - of_key) * BLOCK_H, place, eps,
            KV_H, D, 0, 1, False, "none", False, BLOCK_H, BLOCK_P,
        )  # fmt: skip


def _blocks(heads: int, width: int, across: bool, pairs: int) -> dict:
    """Heads and pairs of a program, and its warps, of which each has so many pairs or more."""
    block_h = next_power_of_2(heads if across else min(heads, HEADS_PER_PROGRAM))
    block_p = next_power_of_2(width // 2)
    return {"BLOCK_H": block_h, "BLOCK_P": block_p, "num_warps": min(max(block_h * block_p // pairs, 1), 32)}


def _tables(rope: Rope | None, norm: HeadNorm | None) -> tuple[Tensor | None, Tensor | None, dict]:
    """cos and sin as the kernels read them, and what is a constant of a kernel."""
    how = {"NORM": "none" if norm is None else norm.kind, "ACROSS": norm is not None and norm.across_heads}
    if rope is None:
        return None, None, how | {"PAIRS": 0, "TABLE_HEADS": 1, "BY_SAMPLE": False, "HALVES": False}
    samples, _, heads, pairs = rope.cos.shape
    how |= {"PAIRS": pairs, "TABLE_HEADS": heads, "BY_SAMPLE": samples > 1, "HALVES": rope.halves}
    return rope.cos.contiguous(), rope.sin.contiguous(), how


def qk_norm_rope(
    given: Heads,
    rows: PackedRows,
    norm: HeadNorm | None,
    rope: Rope | None,
    out: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """As the CPU kernel's `qk_norm_rope`."""
    query, key, value = (unit_rows(t) for t in (given.query, given.key, given.value))
    heads, few, width = given.heads, given.kv_heads, given.width
    if out is None:
        out = torch.empty(query.shape[0], heads + 2 * few, width, dtype=query.dtype, device=query.device)
    cos, sin, how = _tables(rope, norm)
    block = _blocks(heads, width, how["ACROSS"], 256)
    programs = cdiv(heads, block["BLOCK_H"]) + 2 * cdiv(few, block["BLOCK_H"])
    weights = (None,) * 4
    if norm is not None:
        weights = norm.query_weight, norm.key_weight, norm.query_bias, norm.key_bias
    launch(
        _qk_norm_rope_fwd, (query.shape[0], programs),
        query, key, value, rows.index.contiguous(), shift,
        *(None if t is None else t.contiguous() for t in weights), cos, sin, out,
        query.stride(0), key.stride(0), value.stride(0), rows.tokens, 0.0 if norm is None else norm.eps,
        H=heads, KV_H=few, D=width, **how, **block,
    )  # fmt: skip
    return out


@triton.jit
def _turned_back(
    grad_ptr, cos_ptr, sin_ptr, at_one, at_two, mask, place, h, p,
    PAIRS: tl.constexpr, TABLE_HEADS: tl.constexpr,
):  # fmt: skip
    """The gradient of a row before its rotation."""
    ga = tl.load(grad_ptr + at_one, mask=mask, other=0.0).to(tl.float32)
    gb = tl.load(grad_ptr + at_two, mask=mask, other=0.0).to(tl.float32)
    if cos_ptr is not None:
        cos = _angles(cos_ptr, place, h, p, PAIRS, TABLE_HEADS, 1.0)
        sin = _angles(sin_ptr, place, h, p, PAIRS, TABLE_HEADS, 0.0)
        return ga * cos + gb * sin, gb * cos - ga * sin
    return ga, gb


@triton.jit
def _row_sums(
    grad_ptr, x_ptr, index_ptr, weight_ptr, cos_ptr, sin_ptr, sums_ptr, stride_grad, stride_x, tokens, eps,
    H: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, TABLE_HEADS: tl.constexpr, BY_SAMPLE: tl.constexpr,
    HALVES: tl.constexpr, NORM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Of a row across heads: mean, 1/std, and the means of g and g n, with g = grad * weight: sums [T, 4]."""
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    p = tl.arange(0, BLOCK_P)
    one, two = _channels(p, PAIRS, HALVES)
    mask = (h[:, None] < H) & (p[None, :] < D // 2)
    at_one = h[:, None] * D + one[None, :]
    at_two = h[:, None] * D + two[None, :]
    index = tl.load(index_ptr + t)
    place = index if BY_SAMPLE else index - sample_of(index, tokens) * tokens
    a = tl.load(x_ptr + t * stride_x + at_one, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + t * stride_x + at_two, mask=mask, other=0.0).to(tl.float32)
    mean, rstd = _stats(a, b, mask, H * D, eps, NORM == "layer", True)
    a = tl.where(mask, (a - mean) * rstd, 0.0)
    b = tl.where(mask, (b - mean) * rstd, 0.0)
    grad_ptr += t * stride_grad
    ga, gb = _turned_back(grad_ptr, cos_ptr, sin_ptr, at_one, at_two, mask, place, h, p, PAIRS, TABLE_HEADS)
    if weight_ptr is not None:
        ga *= tl.load(weight_ptr + at_one, mask=mask, other=0.0).to(tl.float32)
        gb *= tl.load(weight_ptr + at_two, mask=mask, other=0.0).to(tl.float32)
    one_of_all = tl.where(h == 0, 1.0, 0.0)
    tl.store(sums_ptr + t * 4, tl.sum(one_of_all * tl.sum(mean, axis=1), axis=0))
    tl.store(sums_ptr + t * 4 + 1, tl.sum(one_of_all * tl.sum(rstd, axis=1), axis=0))
    tl.store(sums_ptr + t * 4 + 2, tl.sum(tl.sum(ga + gb, axis=1), axis=0) / (H * D))
    tl.store(sums_ptr + t * 4 + 3, tl.sum(tl.sum(ga * a + gb * b, axis=1), axis=0) / (H * D))


@triton.jit(do_not_specialize=["count"])
def _qk_norm_rope_bwd(
    grad_ptr, x_ptr, index_ptr, weight_ptr, cos_ptr, sin_ptr, sums_ptr, grad_x_ptr, partial_weight_ptr,
    partial_bias_ptr, count, stride_grad, stride_x, tokens, eps,
    H: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, TABLE_HEADS: tl.constexpr, BY_SAMPLE: tl.constexpr,
    HALVES: tl.constexpr, NORM: tl.constexpr, ACROSS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of BLOCK_H heads of one tensor; partial sums [slices, H, D] of the weights of each head."""
    part = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    p = tl.arange(0, BLOCK_P)
    one, two = _channels(p, PAIRS, HALVES)
    mask = (h[:, None] < H) & (p[None, :] < D // 2)
    at_one = h[:, None] * D + one[None, :]
    at_two = h[:, None] * D + two[None, :]
    own_one = at_one if ACROSS else one[None, :] + h[:, None] * 0
    own_two = at_two if ACROSS else two[None, :] + h[:, None] * 0
    dtype = grad_x_ptr.dtype.element_ty
    total_a = tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
    total_b = tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
    bias_a = tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
    bias_b = tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
    for t in range(part * ROWS, tl.minimum(part * ROWS + ROWS, count)):
        index = tl.load(index_ptr + t)
        place = index if BY_SAMPLE else index - sample_of(index, tokens) * tokens
        row_ptr = grad_ptr + t * stride_grad
        ga, gb = _turned_back(
            row_ptr, cos_ptr, sin_ptr, at_one, at_two, mask, place, h, p, PAIRS, TABLE_HEADS
        )
        if NORM != "none":
            a = tl.load(x_ptr + t * stride_x + at_one, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(x_ptr + t * stride_x + at_two, mask=mask, other=0.0).to(tl.float32)
            if ACROSS:
                mean = tl.load(sums_ptr + t * 4)
                rstd = tl.load(sums_ptr + t * 4 + 1)
            else:
                mean, rstd = _stats(a, b, mask, D, eps, NORM == "layer", False)
            a = tl.where(mask, (a - mean) * rstd, 0.0)
            b = tl.where(mask, (b - mean) * rstd, 0.0)
            total_a += ga * a
            total_b += gb * b
            bias_a += ga
            bias_b += gb
            # rstd (g - mean(g) - n mean(g n)), with g = grad * weight; no mean(g) for rms
            if weight_ptr is not None:
                ga *= tl.load(weight_ptr + own_one, mask=mask, other=0.0).to(tl.float32)
                gb *= tl.load(weight_ptr + own_two, mask=mask, other=0.0).to(tl.float32)
            if ACROSS:
                sums = tl.load(sums_ptr + t * 4 + 2)
                dot = tl.load(sums_ptr + t * 4 + 3)
            else:
                sums = (tl.sum(ga + gb, axis=1) / D)[:, None]
                dot = (tl.sum(ga * a + gb * b, axis=1) / D)[:, None]
            if NORM != "layer":
                sums = sums * 0.0
            ga = rstd * (ga - sums - a * dot)
            gb = rstd * (gb - sums - b * dot)
        tl.store(grad_x_ptr + t * H * D + at_one, ga.to(dtype), mask=mask)
        tl.store(grad_x_ptr + t * H * D + at_two, gb.to(dtype), mask=mask)
    if partial_weight_ptr is not None:
        tl.store(partial_weight_ptr + part * H * D + at_one, total_a, mask=mask)
        tl.store(partial_weight_ptr + part * H * D + at_two, total_b, mask=mask)
    if partial_bias_ptr is not None:
        tl.store(partial_bias_ptr + part * H * D + at_one, bias_a, mask=mask)
        tl.store(partial_bias_ptr + part * H * D + at_two, bias_b, mask=mask)


def qk_norm_rope_backward(
    grad: Tensor, given: Heads, rows: PackedRows, norm: HeadNorm | None, rope: Rope | None
) -> tuple[Tensor | None, ...]:
    """Gradients of query [T, H d] and key [T, h d], and in fp32 of weights and biases, where there are any.

    grad: [T, H + 2h, d].
    """
    heads, few = given.heads, given.kv_heads
    grad = grad.contiguous()
    weights = (None,) * 4
    if norm is not None:
        weights = norm.query_weight, norm.query_bias, norm.key_weight, norm.key_bias
    query = _one_backward(grad[:, :heads], given.query, heads, rows, norm, rope, weights[:2])
    key = _one_backward(grad[:, heads : heads + few], given.key, few, rows, norm, rope, weights[2:])
    return query[0], key[0], query[1], key[1], query[2], key[2]


def _one_backward(grad, x, heads: int, rows: PackedRows, norm, rope, weights):
    weight, bias = weights
    (count, columns), x = x.shape, unit_rows(x)
    width, slices = columns // heads, cdiv(count, ROWS_PER_SLICE)
    (cos, sin, how), eps = _tables(rope, norm), 0.0 if norm is None else norm.eps
    index, weight = rows.index.contiguous(), None if weight is None else weight.contiguous()
    sums = None
    if how["ACROSS"]:
        sums, row = accumulator(count, 4, like=x), _blocks(heads, width, True, 128)
        launch(
            _row_sums, (count,), grad, x, index, weight, cos, sin, sums, grad.stride(0), x.stride(0),
            rows.tokens, eps, H=heads, D=width, **{k: v for k, v in how.items() if k != "ACROSS"}, **row,
        )  # fmt: skip
    block = _blocks(heads, width, False, 64)
    grad_x = torch.empty(count, columns, dtype=x.dtype, device=x.device)
    partial_weight, partial_bias = (
        None if t is None else accumulator(slices, heads, width, like=x) for t in (weight, bias)
    )
    launch(
        _qk_norm_rope_bwd, (slices, cdiv(heads, block["BLOCK_H"])),
        grad, x, index, weight, cos, sin, sums, grad_x, partial_weight, partial_bias,
        count, grad.stride(0), x.stride(0), rows.tokens, eps,
        H=heads, D=width, **how, **block, ROWS=ROWS_PER_SLICE,
    )  # fmt: skip
    totals = (None if partial is None else partial.sum(0) for partial in (partial_weight, partial_bias))
    return grad_x, *(_of_norm(total, how["ACROSS"]) for total in totals)


def _of_norm(total: Tensor | None, across_heads: bool) -> Tensor | None:
    """The sums [H, d] of a weight's gradient as the weight is: [H d] across heads, else [d]."""
    if total is None:
        return None
    return total.flatten() if across_heads else total.sum(0)
