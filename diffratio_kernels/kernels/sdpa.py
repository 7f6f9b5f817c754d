"""Packed attention through torch's scaled_dot_product_attention, which picks its own fastest kernel.

Plain differentiable torch: autograd sees through it.
"""

from __future__ import annotations

from itertools import accumulate, groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    max_query: int,
    max_key: int,
    key_lengths: Tensor | None,
    scale: float | None,
) -> Tensor:
    """query [T, H, d]; key, value [S, H, d]; offsets [B+1]; key_lengths [B] or None -> [T, H, d]."""
    samples = query_offsets.shape[0] - 1
    if query.shape[0] == 0:
        return torch.zeros_like(query)
    if query.shape[0] == samples * max_query and key.shape[0] == samples * max_key:
        q, k, v = (t.unflatten(0, (samples, -1)) for t in (query, key, value))
        return _batched(q, k, v, key_lengths, scale).flatten(0, 1)
    # Offsets can be read without a sync where they are on the CPU, and are a plain tensor (not a traced one).
    if query_offsets.device.type == "cpu" and type(query_offsets) is Tensor:
        return _per_run(query, key, value, query_offsets.tolist(), key_offsets.tolist(), key_lengths, scale)
    return _padded(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale)


def _batched(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, scale: float | None) -> Tensor:
    """[B, ., H, d]; the first key_lengths[b] keys of a sample count; a sample without any gives zeros."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if key_lengths is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
    # Padding may hold anything, so it is cleared as well as masked; a sample without keys then attends to
    # zeros: no NaN, forward or backward.
    valid = torch.arange(k.shape[2], device=k.device) < key_lengths[:, None]
    k, v = (t.masked_fill(~valid[:, None, :, None], 0) for t in (k, v))
    mask = valid | (key_lengths == 0)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], scale=scale)
    return out.transpose(1, 2)


def runs(*lengths: list[int]) -> list[int]:
    """How many samples in a row are alike in all lengths: samples of one bin are computed together."""
    return [len(list(group)) for _, group in groupby(zip(*lengths, strict=True))]


def _per_run(query, key, value, query_offsets, key_offsets, key_lengths, scale) -> Tensor:
    query_lengths, room = ([b - a for a, b in pairwise(o)] for o in (query_offsets, key_offsets))
    lengths = room if key_lengths is None else key_lengths.tolist()
    counts = runs(query_lengths, room, lengths)
    firsts = [0, *accumulate(counts)][:-1]
    queries = query.split([n * query_lengths[b] for b, n in zip(firsts, counts, strict=True)])
    keys, values = (t.split([n * room[b] for b, n in zip(firsts, counts, strict=True)]) for t in (key, value))
    outs = []
    for first, n, q, k, v in zip(firsts, counts, queries, keys, values, strict=True):
        length = lengths[first]
        if q.shape[0] == 0 or length == 0:
            outs.append(torch.zeros_like(q))
            continue
        k, v = (t.unflatten(0, (n, -1))[:, :length] for t in (k, v))
        outs.append(_batched(q.unflatten(0, (n, -1)), k, v, None, scale).flatten(0, 1))
    return torch.cat(outs) if outs else torch.zeros_like(query)


def _padded(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale) -> Tensor:
    def places(offsets: Tensor, longest: int, rows: int) -> Tensor:
        at = offsets[:-1, None].long() + torch.arange(longest, device=offsets.device)
        return at.clamp(max=rows - 1)

    lengths = key_offsets.diff() if key_lengths is None else key_lengths
    q = query[places(query_offsets, max_query, query.shape[0])]
    at = places(key_offsets, max_key, key.shape[0])
    out = _batched(q, key[at], value[at], lengths, scale)
    row = torch.arange(query.shape[0], device=query.device)
    sample = torch.bucketize(row, query_offsets[1:].long(), right=True)
    return out[sample, row - query_offsets.long()[sample]]
