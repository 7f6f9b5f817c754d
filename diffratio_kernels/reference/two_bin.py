"""The differentiable ratio: two routed blocks blended (paper section 3.3), and the steps of its packed form.

Packed rows of two bins: sample b keeps k_l >= k_s tokens, T = sum k_l, S = sum k_s. `index [T]` holds each
sample's small set first (`select_tokens` with `keep_small`). Tensors of "both" bins have T + S rows: the
large rows of all samples, then the small rows of all samples again. On a packed row, w = weight_large of its
sample, its small weight is 1 - w if it is in the small set and 0 if not, and omega is the sum of the two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import attention
from .mod_block import mod_block
from .routing import accumulation_dtype


def two_bin_block(
    x: Tensor,
    router_weight: Tensor,
    keep_small: list[int],
    keep_large: list[int],
    weight_large: Tensor,
    *args,
    index: Tensor | None = None,
    **kwargs,
) -> Tensor:
    """w_a F(x, k_a) + w_b F(x, k_b) as two separate passes: the definition, not the way to compute it.

    weight_large [B] is w_b (differentiable), w_a = 1 - w_b; `index` [T], a selection of both bins; other
    arguments as in `mod_block`.
    """
    dtype = accumulation_dtype(x.dtype)
    weight = weight_large.to(dtype)[:, None, None]
    prefix = None
    if index is not None:
        parts = zip(index.split(keep_large), keep_small, strict=True)
        prefix = torch.cat([rows[:k] for rows, k in parts]) if keep_small else index
    small = mod_block(x, router_weight, keep_small, *args, index=prefix, **kwargs).to(dtype)
    large = mod_block(x, router_weight, keep_large, *args, index=index, **kwargs).to(dtype)
    return ((1 - weight) * small + weight * large).to(x.dtype)


def small_rows(large_offsets: Tensor, small_offsets: Tensor, count: int) -> Tensor:
    """[S] packed row of each small row: sample b's begin where its large rows do."""
    at = torch.arange(count, device=large_offsets.device)
    sample = torch.bucketize(at, small_offsets[1:].long(), right=True)
    return at - small_offsets.long()[sample] + large_offsets.long()[sample]


def _blend(both: Tensor, weight_large: Tensor, large_offsets: Tensor, small_offsets: Tensor, rows: int):
    """Rows [T + S, .] of both bins -> [T, .]: w * large (+ (1 - w) * small on small rows)."""
    small = small_rows(large_offsets, small_offsets, both.shape[0] - rows)
    weight = _row_weights(weight_large, large_offsets, rows, both.dtype)
    return (weight * both[:rows]).index_add(0, small, (1 - weight[small]) * both[rows:])


def _row_weights(weight_large: Tensor, large_offsets: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    at = torch.arange(rows, device=large_offsets.device)
    return weight_large.to(dtype)[torch.bucketize(at, large_offsets[1:].long(), right=True), None]


def branch_weight(weight_large: Tensor, large_offsets: Tensor, small_offsets: Tensor, rows: int, count: int):
    """omega [T, 1]: 1 where both bins hold a row, w where only the large one does."""
    small = small_rows(large_offsets, small_offsets, count)
    weight = _row_weights(weight_large, large_offsets, rows, accumulation_dtype(weight_large.dtype))
    return weight.index_add(0, small, 1 - weight[small])


def two_bin_gelu(pre: Tensor, weight_large: Tensor, large_offsets: Tensor, small_offsets: Tensor, rows: int):
    """pre [T + S, F] of both bins -> the blend [T, F] of their GELUs (tanh): fc2 runs once on it.

    w (g_l W) + (1 - w) (g_s W) = (w g_l + (1 - w) g_s) W. rows is T.
    """
    inner = F.gelu(pre.to(accumulation_dtype(pre.dtype)), approximate="tanh")
    return _blend(inner, weight_large, large_offsets, small_offsets, rows).to(pre.dtype)


def two_bin_blend(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    weight_large: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    rescale: str = "mlp",
    score_scale: float = 1.0,
) -> Tensor:
    """Blend the residual streams, finish the kept rows as `scatter_rescale` does, put them into a copy of x.

    hidden [T + S, D] of both bins; branch [T, D], the output of fc2 on the blended rows (its bias weighted
    by omega). With h the blend of hidden, u = gate * branch and s the score, row i becomes
    "mlp": (1 - omega) x_i + h + s u; "residual": x_i + s (h - omega x_i + u);
    "output": (1 - omega) x_i + s (h + u); "none": (1 - omega) x_i + h + u.
    """
    batch, tokens, width = x.shape
    dtype = accumulation_dtype(x.dtype)
    rows, offsets = index.shape[0], (large_offsets, small_offsets)
    flat = x.reshape(-1, width)
    score = (score_scale * logits.reshape(-1)[index].to(dtype).sigmoid())[:, None]
    update = gate.to(dtype)[index // tokens] * branch.to(dtype)
    stream = _blend(hidden.to(dtype), weight_large, *offsets, rows)
    omega = branch_weight(weight_large, *offsets, rows, hidden.shape[0] - rows).to(dtype)
    kept = flat[index].to(dtype)
    if rescale == "mlp":
        done = (1 - omega) * kept + stream + score * update
    elif rescale == "residual":
        done = kept + score * (stream - omega * kept + update)
    elif rescale == "output":
        done = (1 - omega) * kept + score * (stream + update)
    elif rescale == "none":
        done = (1 - omega) * kept + stream + update
    else:
        raise ValueError(f"rescale={rescale!r} must be one of 'mlp', 'residual', 'output', 'none'")
    return flat.index_copy(0, index, done.to(x.dtype)).reshape(x.shape)


def two_bin_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    longest_large: int,
    longest_small: int,
    small: int,
    scale: float | None = None,
) -> Tensor:
    """Attention among each sample's large set [T] and among its small set, the prefix [S]: [T + S, H, d].

    query, key, value [T, H, d]; small is S.
    """
    large = attention(
        query, key, value, large_offsets, large_offsets, longest_large, longest_large, scale=scale
    )
    at = small_rows(large_offsets, small_offsets, small)
    parts = [t[at] for t in (query, key, value)]
    offsets = small_offsets, small_offsets, longest_small, longest_small
    return torch.cat([large, attention(*parts, *offsets, scale=scale)])
