"""Packed (varlen) attention in eager PyTorch: pad, softmax(q k^T) v, unpad. No host sync."""

import math

import torch
from torch import Tensor

from ...types import Seqlens
from ..route.reference import accumulation_dtype


def padded(
    query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query, key and value [B, longest, ., d], any rows where there are none, and key lengths [B]."""

    def positions(cu_seqlens: Tensor, longest: int, rows: int) -> Tensor:
        at = cu_seqlens[:-1, None].long() + torch.arange(longest, device=cu_seqlens.device)
        return at.clamp(max=max(rows - 1, 0))

    of_query = positions(seqlens.cu_seqlens_q, seqlens.max_seqlen_q, query.shape[0])
    of_key = positions(seqlens.cu_seqlens_k, seqlens.max_seqlen_k, key.shape[0])
    lengths = seqlens.cu_seqlens_k.diff() if seqlens.key_lengths is None else seqlens.key_lengths
    return query[of_query], key[of_key], value[of_key], lengths


def unpadded(out: Tensor, seqlens: Seqlens, rows: int) -> Tensor:
    """[B, longest, H, d] -> the packed rows [T, H, d]."""
    at = torch.arange(rows, device=out.device)
    sample = torch.bucketize(at, seqlens.cu_seqlens_q[1:].long(), right=True)
    return out[sample, at - seqlens.cu_seqlens_q.long()[sample]]


def attention(
    query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None = None
) -> Tensor:
    """Sample b's queries attend to sample b's keys.

    query [T, H, d]; key, value [S, h, d], each head for H / h heads of query. A sample without keys gives
    zeros.
    Products in the working dtype, softmax in at least fp32.
    """
    rows, _, head_dim = query.shape
    if rows == 0 or key.shape[0] == 0:
        return query.new_zeros(query.shape)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    q, k, v, lengths = padded(query, key, value, seqlens)
    valid = torch.arange(seqlens.max_seqlen_k, device=query.device) < lengths[:, None]
    # Padding may hold anything (0 * inf is NaN), so it is cleared as well as given no weight.
    k, v = (t.masked_fill(~valid[:, :, None, None], 0) for t in (k, v))
    k, v = (t.repeat_interleave(query.shape[1] // t.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).to(accumulation_dtype(query.dtype)) * scale
    scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
    empty = ~valid.any(dim=1)[:, None, None, None]
    weights = scores.masked_fill(empty, 0).softmax(dim=-1).masked_fill(~valid[:, None, None, :], 0)
    out = torch.einsum("bhqk,bkhd->bqhd", weights.to(query.dtype), v)
    return unpadded(out, seqlens, rows)
