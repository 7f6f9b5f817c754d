"""`qk_norm_rope` by the C++ row kernel; its gradients by the reference."""

from dataclasses import replace

import torch
from torch import Tensor

from ...types import HeadNorm, Heads, PackedRows, Rope
from ..cpu import accumulation, native
from . import reference


def qk_norm_rope(
    given: Heads,
    rows: PackedRows,
    norm: HeadNorm | None,
    rope: Rope | None,
    out: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Query, key and value side by side [T, H + 2h, d].

    out: [R, H + 2h, d], where row t of sample s is written to row t + shift[s] (shift [B] int32).
    """
    query, key, value = (
        t if t.stride(-1) == 1 else t.contiguous() for t in (given.query, given.key, given.value)
    )
    if out is None:
        out = torch.empty(query.shape[0], given.heads + 2 * given.kv_heads, given.width, dtype=query.dtype)
    kind, across, eps, weights = "none", False, 0.0, (None,) * 4
    if norm is not None:
        kind, across, eps = norm.kind, norm.across_heads, norm.eps
        weights = norm.query_weight, norm.key_weight, norm.query_bias, norm.key_bias
    weights = [None if t is None else accumulation(t, query) for t in weights]
    tables = (None, None) if rope is None else (accumulation(rope.cos, query), accumulation(rope.sin, query))
    native.qk_norm_rope(
        query, key, value, given.heads, given.kv_heads, rows.index.contiguous(), rows.tokens, kind, across,
        eps,
        *weights, *tables, rope is not None and rope.halves, shift, out,
    )  # fmt: skip
    return out


def qk_norm_rope_backward(
    grad: Tensor, given: Heads, rows: PackedRows, norm: HeadNorm | None, rope: Rope | None
) -> tuple[Tensor | None, ...]:
    """As the Triton kernels' `qk_norm_rope_backward`."""
    names = ("query_weight", "key_weight", "query_bias", "key_bias")
    leaves = [given.query, given.key, *(None if norm is None else getattr(norm, name) for name in names)]
    leaves = [None if t is None else t.detach().requires_grad_() for t in leaves]
    with torch.enable_grad():
        own = None if norm is None else replace(norm, **dict(zip(names, leaves[2:], strict=True)))
        out = reference.qk_norm_rope(replace(given, query=leaves[0], key=leaves[1]), rows, own, rope)
    found = iter(torch.autograd.grad(out, [t for t in leaves if t is not None], grad))
    return tuple(None if t is None else next(found) for t in leaves)
