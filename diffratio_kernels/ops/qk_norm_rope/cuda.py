"""`qk_norm_rope` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import HeadNorm, Heads, PackedRows, Rope
from .. import cuda
from ..cuda import fp32, stream

SLICE_HEADS, SLICE_ROWS = 256, 16  # kSliceHeads and kSliceRows in qk_norm_rope_backward.cuh


def qk_norm_rope(
    given: Heads,
    rows: PackedRows,
    norm: HeadNorm | None,
    rope: Rope | None,
    out: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """As the CPU kernel's `qk_norm_rope`."""
    query, key, value, *rest = _as_read(given, rows, norm, rope)
    if out is None:
        shape = query.shape[0], given.heads + 2 * given.kv_heads, given.width
        out = torch.empty(shape, dtype=query.dtype, device=query.device)
    cuda.operators.qk_norm_rope(query, key, value, *rest, shift, out, stream(query))
    return out


def qk_norm_rope_backward(
    grad: Tensor, given: Heads, rows: PackedRows, norm: HeadNorm | None, rope: Rope | None
) -> tuple[Tensor | None, ...]:
    """As the Triton kernels' `qk_norm_rope_backward`."""
    query, key, _, *rest = _as_read(given, rows, norm, rope)
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key)]
    sums = [None] * 4
    if norm is not None:
        heads = (given.heads, given.kv_heads) * 2
        of_norm = norm.query_weight, norm.key_weight, norm.query_bias, norm.key_bias
        sums = [
            None if t is None else _of_slices(t, query.shape[0] * (1 if norm.across_heads else count), norm)
            for t, count in zip(of_norm, heads, strict=True)
        ]
    cuda.operators.qk_norm_rope_backward(grad.contiguous(), query, key, *rest, *grads, *sums, stream(query))
    return *grads, *(None if t is None else t.sum(0) for t in sums)


def _of_slices(weight: Tensor, count: int, norm: HeadNorm) -> Tensor:
    """Room for the sums of each slice of `count` rows, or heads."""
    slices = -(-count // (SLICE_ROWS if norm.across_heads else SLICE_HEADS))
    return torch.empty(slices, weight.shape[0], dtype=torch.float32, device=weight.device)


def _as_read(given: Heads, rows: PackedRows, norm: HeadNorm | None, rope: Rope | None) -> tuple:
    """Arguments of both kernels as they read them: weights in their dtype where it is that of query."""
    parts = [t if t.stride(-1) == 1 else t.contiguous() for t in (given.query, given.key, given.value)]
    kind, across, eps, weights = "none", False, 0.0, (None,) * 4
    if norm is not None:
        kind, across, eps = norm.kind, norm.across_heads, norm.eps
        weights = norm.query_weight, norm.key_weight, norm.query_bias, norm.key_bias
        like_query = all(t is None or t.dtype == given.query.dtype for t in weights)
        weights = (t if t is None else t.contiguous() if like_query else fp32(t) for t in weights)
    tables = (None, None) if rope is None else (fp32(rope.cos), fp32(rope.sin))
    places = rows.index.contiguous(), rows.tokens, given.heads, given.kv_heads
    return *parts, *places, kind, across, eps, *weights, *tables, rope is not None and rope.halves
