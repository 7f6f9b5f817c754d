"""`qk_norm_rope` in eager PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...types import HeadNorm, Heads, PackedRows, Rope
from ..route.reference import accumulation_dtype


def qk_norm_rope(
    given: Heads,
    rows: PackedRows,
    norm: HeadNorm | None,
    rope: Rope | None,
    out: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Query and key normed and turned by the place of their token, and the value [T, H + 2h, d].

    In at least fp32, with one rounding at the end. out, shift: as of `placed`.
    """
    query, key = given.query, given.key
    weights = (
        (None,) * 4 if norm is None else (norm.query_weight, norm.query_bias, norm.key_weight, norm.key_bias)
    )
    done = [
        _one(x, heads, norm, weight, bias, rows, rope)
        for x, heads, weight, bias in (
            (query, given.heads, *weights[:2]), (key, given.kv_heads, *weights[2:]),
        )
    ]  # fmt: skip
    heads = torch.cat([*done, given.value.unflatten(-1, (given.kv_heads, -1)).to(query.dtype)], dim=1)
    return heads if out is None else placed(heads, rows, out, shift)


def placed(heads: Tensor, rows: PackedRows, out: Tensor, shift: Tensor) -> Tensor:
    """out [R, ...] with row t of sample s of heads [T, ...] in row t + shift[s] (shift [B] int32)."""
    places = torch.arange(heads.shape[0], device=heads.device) + shift[rows.index // rows.tokens]
    return out.index_copy_(0, places, heads)


def _one(x, heads: int, norm: HeadNorm | None, weight, bias, rows: PackedRows, rope: Rope | None) -> Tensor:
    """[T, H d] -> [T, H, d]."""
    dtype = accumulation_dtype(x.dtype)
    wide = x.to(dtype)
    if norm is None or not norm.across_heads:
        wide = wide.unflatten(-1, (heads, -1))
    if norm is not None:
        shape = wide.shape[-1:]
        weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
        if norm.kind == "layer":
            wide = F.layer_norm(wide, shape, weight, bias, norm.eps)
        else:
            wide = F.rms_norm(wide, shape, weight, norm.eps) + (0 if bias is None else bias)
        if norm.across_heads:
            wide = wide.unflatten(-1, (heads, -1))
    return (wide if rope is None else turned(wide, rows, rope)).to(x.dtype)


def turned(x: Tensor, rows: PackedRows, rope: Rope) -> Tensor:
    """x [T, H, d] with the pairs of its channels turned by the angles of each row's token."""
    places = rows.index % rows.tokens if rope.cos.shape[0] == 1 else rows.index
    tables = (rope.cos, rope.sin, *(rope.second or ()))
    cos, sin, *second = (table.flatten(0, 1)[places].to(x.dtype) for table in tables)
    cos2, sin2 = second or (cos, sin)
    turning, still = x.split([2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], dim=-1)
    if rope.halves:
        a, b = turning.chunk(2, dim=-1)
        turning = torch.cat([a * cos - b * sin, a * sin2 + b * cos2], dim=-1)
    else:
        a, b = turning.unflatten(-1, (-1, 2)).unbind(-1)
        turning = torch.stack([a * cos - b * sin, a * sin2 + b * cos2], dim=-1).flatten(-2)
    return torch.cat([turning, still], dim=-1)
