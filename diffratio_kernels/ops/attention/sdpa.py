"""Packed attention through torch's scaled_dot_product_attention, which picks its own fastest kernel.

Plain differentiable torch: autograd sees through it.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ...types import Seqlens


def attention(query: Tensor, key: Tensor, value: Tensor, seqlens: Seqlens, scale: float | None) -> Tensor:
    """query [T, H, d]; key, value [S, H, d] -> [T, H, d]."""
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
    counts, last = [], None
    # Not groupby, which torch.compile cannot key by its own integers.
    for these in zip(*lengths, strict=True):
        if counts and these == last:
            counts[-1] += 1
        else:
            counts.append(1)
        last = these
    return counts


def _per_run(query, key, value, seqlens, scale) -> Tensor:
    query_lengths = seqlens.cu_seqlens_q.diff().tolist()
    room = seqlens.cu_seqlens_k.diff().tolist()
    lengths = room if seqlens.key_lengths is None else seqlens.key_lengths.tolist()
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
    return torch.cat(outs) if outs else query.new_zeros(query.shape)


def _padded(query, key, value, seqlens, scale) -> Tensor:
    def positions(cu_seqlens: Tensor, max_seqlen: int, rows: int) -> Tensor:
        at = cu_seqlens[:-1, None].long() + torch.arange(max_seqlen, device=cu_seqlens.device)
        return at.clamp(max=rows - 1)

    cu_seqlens_q, cu_seqlens_k, lengths = seqlens.cu_seqlens_q, seqlens.cu_seqlens_k, seqlens.key_lengths
    lengths = cu_seqlens_k.diff() if lengths is None else lengths
    q = query[positions(cu_seqlens_q, seqlens.max_seqlen_q, query.shape[0])]
    at = positions(cu_seqlens_k, seqlens.max_seqlen_k, key.shape[0])
    out = _batched(q, key[at], value[at], lengths, scale)
    row = torch.arange(query.shape[0], device=query.device)
    sample = torch.bucketize(row, cu_seqlens_q[1:].long(), right=True)
    return out[sample, row - cu_seqlens_q.long()[sample]]
