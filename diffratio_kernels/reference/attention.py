"""Packed (varlen) attention written out: pad, softmax(q k^T) v, unpad. No host sync."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .routing import accumulation_dtype


def _padded_positions(offsets: Tensor, longest: int, rows: int) -> Tensor:
    """[B, longest] packed row of each padded place, clamped into range where there is none."""
    places = offsets[:-1, None].long() + torch.arange(longest, device=offsets.device)
    return places.clamp(max=max(rows - 1, 0))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    max_query: int,
    max_key: int,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Sample b's queries attend to sample b's keys.

    query [T, H, d]; key, value [S, H, d]; offsets [B+1] int32; `key_lengths` [B]: how many of a
    sample's keys count (the first ones), all by default. A sample without keys gives zeros.
    Products in the working dtype, softmax in at least fp32.
    """
    rows, heads, head_dim = query.shape
    if rows == 0 or key.shape[0] == 0:
        return torch.zeros_like(query)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    q = query[_padded_positions(query_offsets, max_query, rows)]
    at = _padded_positions(key_offsets, max_key, key.shape[0])
    k, v = key[at], value[at]

    lengths = key_offsets.diff() if key_lengths is None else key_lengths
    valid = torch.arange(max_key, device=query.device) < lengths[:, None]
    # Padding may hold anything (0 * inf is NaN), so it is cleared as well as given no weight.
    k, v = (t.masked_fill(~valid[:, :, None, None], 0) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).to(accumulation_dtype(query.dtype)) * scale
    scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
    empty = ~valid.any(dim=1)[:, None, None, None]
    weights = scores.masked_fill(empty, 0).softmax(dim=-1).masked_fill(~valid[:, None, None, :], 0)
    out = torch.einsum("bhqk,bkhd->bqhd", weights.to(query.dtype), v)

    at_row = torch.arange(rows, device=query.device)
    sample = torch.bucketize(at_row, query_offsets[1:].long(), right=True)
    return out[sample, at_row - query_offsets.long()[sample]]
