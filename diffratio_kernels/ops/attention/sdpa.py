"""Packed attention through torch's scaled_dot_product_attention, which picks its own fastest kernel.

Plain differentiable torch: autograd sees through it.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ...types import Seqlens
from .reference import padded, unpadded


def attention(query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None) -> Tensor:
    """query [T, H, d]; key, value [S, h, d] -> [T, H, d]."""
    samples = seqlens.cu_seqlens_q.shape[0] - 1
    if query.shape[0] == 0:
        return query.new_zeros(query.shape)
    rows = samples * seqlens.max_seqlen_q, samples * seqlens.max_seqlen_k
    if rows == (query.shape[0], key.shape[0]):
        q, k, v = (t.unflatten(0, (samples, -1)) for t in (query, key, value))
        return _batched(q, k, v, seqlens.key_lengths, scale).flatten(0, 1).contiguous()
    # Values can be read without a sync where they are on the CPU, and are a plain tensor (not a traced one).
    if query.device.type == "cpu" and type(seqlens.cu_seqlens_q) is Tensor:
        return _per_run(query, key, value, seqlens, scale)
    return _padded(query, key, value, seqlens, scale)


def _batched(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, scale: float | None) -> Tensor:
    """[B, ., H, d] and [B, ., h, d]; the first key_lengths[b] keys of a sample count; a sample without any
    gives zeros."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    options = {"scale": scale, "enable_gqa": bool(q.shape[1] != k.shape[1])}  # traced, it is no bool
    if key_lengths is None:
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)
    # Padding may hold anything, so it is cleared as well as masked; a sample without keys then attends to
    # zeros: no NaN, forward or backward.
    valid = torch.arange(k.shape[2], device=k.device) < key_lengths[:, None]
    k, v = (t.masked_fill(~valid[:, None, :, None], 0) for t in (k, v))
    mask = valid | (key_lengths == 0)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], **options)
    return out.transpose(1, 2)


def runs(*lengths: list[int]) -> list[tuple[int, int]]:
    """First and number of samples in a row that are alike in all lengths, which are computed together."""
    # Not by groupby, which torch.compile cannot key by its own integers.
    each = list(zip(*lengths, strict=True))
    firsts = [b for b, these in enumerate(each) if b == 0 or these != each[b - 1]]
    return [(first, end - first) for first, end in pairwise([*firsts, len(each)])]


def _per_run(query, key, value, seqlens, scale) -> Tensor:
    query_lengths = seqlens.cu_seqlens_q.diff().tolist()
    room = seqlens.cu_seqlens_k.diff().tolist()
    lengths = room if seqlens.key_lengths is None else seqlens.key_lengths.tolist()
    alike = runs(query_lengths, room, lengths)
    queries = query.split([n * query_lengths[first] for first, n in alike])
    keys, values = (t.split([n * room[first] for first, n in alike]) for t in (key, value))
    outs = []
    for (first, n), q, k, v in zip(alike, queries, keys, values, strict=True):
        length = lengths[first]
        if q.shape[0] == 0 or length == 0:
            outs.append(torch.zeros_like(q))
            continue
        k, v = (t.unflatten(0, (n, -1))[:, :length] for t in (k, v))
        outs.append(_batched(q.unflatten(0, (n, -1)), k, v, None, scale).flatten(0, 1))
    return torch.cat(outs) if outs else query.new_zeros(query.shape)


def _padded(query, key, value, seqlens, scale) -> Tensor:
    q, k, v, lengths = padded(query, key, value, seqlens)
    return unpadded(_batched(q, k, v, lengths, scale), seqlens, query.shape[0])
