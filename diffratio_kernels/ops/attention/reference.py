"""Packed (varlen) attention in eager PyTorch: pad, softmax(q k^T) v, unpad. No host sync."""

import math

import torch
from torch import Tensor

from ...types import Seqlens
from ..route.reference import accumulation_dtype


def _padded_positions(cu_seqlens: Tensor, max_seqlen: int, rows: int) -> Tensor:
    """[B, max_seqlen] packed row of each padded place, clamped into range where there is none."""
    positions = cu_seqlens[:-1, None].long() + torch.arange(max_seqlen, device=cu_seqlens.device)
    return positions.clamp(max=max(rows - 1, 0))


def attention(
    query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None = None
) -> Tensor:
    """Sample b's queries attend to sample b's keys.

    query [T, H, d]; key, value [S, H, d]. A sample without keys gives zeros.
    Products in the working dtype, softmax in at least fp32.
    """
    rows, _, head_dim = query.shape
    if rows == 0 or key.shape[0] == 0:
        return query.new_zeros(query.shape)
    cu_seqlens_q, cu_seqlens_k, lengths = seqlens.cu_seqlens_q, seqlens.cu_seqlens_k, seqlens.key_lengths
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    q = query[_padded_positions(cu_seqlens_q, seqlens.max_seqlen_q, rows)]
    at = _padded_positions(cu_seqlens_k, seqlens.max_seqlen_k, key.shape[0])
    k, v = key[at], value[at]

    lengths = cu_seqlens_k.diff() if lengths is None else lengths
    valid = torch.arange(seqlens.max_seqlen_k, device=query.device) < lengths[:, None]
    # Padding may hold anything (0 * inf is NaN), so it is cleared as well as given no weight.
    k, v = (t.masked_fill(~valid[:, :, None, None], 0) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).to(accumulation_dtype(query.dtype)) * scale
    scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
    empty = ~valid.any(dim=1)[:, None, None, None]
    weights = scores.masked_fill(empty, 0).softmax(dim=-1).masked_fill(~valid[:, None, None, :], 0)
    out = torch.einsum("bhqk,bkhd->bqhd", weights.to(query.dtype), v)

    at_row = torch.arange(rows, device=query.device)
    sample = torch.bucketize(at_row, cu_seqlens_q[1:].long(), right=True)
    return out[sample, at_row - cu_seqlens_q.long()[sample]]
