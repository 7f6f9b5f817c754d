"""The packed two-bin forward over any linears: raw weights in `two_bin_block`, or a block's own modules.

One computation for w F(x, k_large) + (1 - w) F(x, k_small): routing, QKV and attention once, on the large
set; out-projection, cross-attention, adaLN and fc1 once, on the rows of both bins one after the other; fc2
once, on the blend, because it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .. import reference
from .block_steps import Steps
from .recompute import without_keeping
from .route import packed_offsets
from .two_bin_attention import small_rows_of, with_small_rows


@dataclass(frozen=True)
class Linears:
    """A block's products on packed rows [t, .]. `fc2_bias` is fc2's bias, whether fc2 adds it or not."""

    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    fc1: Callable[[Tensor], Tensor]
    fc2: Callable[[Tensor], Tensor]
    fc2_bias: Tensor | None
    fc2_adds_bias: bool = True
    cross_q: Callable[[Tensor], Tensor] | None = None
    cross_out: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Rows:
    """Packed rows of one bin, or of both as those of 2B samples, and what belongs to each sample.

    index [t]: row of the flattened [B*N], or [2*B*N]: sample b of the small bin is sample B + b there;
    gate1, shift2, scale2 [b, D]; context_kv [b, M, 2, D]; context_lengths [b].
    """

    index: Tensor
    keep: list[int]
    offsets: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    context_kv: Tensor | None
    context_lengths: Tensor | None


def two_bin_forward(
    steps: Steps,
    linears: Linears,
    x: Tensor,
    index: Tensor,
    logits: Tensor,
    keep_small: list[int],
    keep_large: list[int],
    weight_large: Tensor,
    modulation: Tensor,
    num_heads: int,
    *,
    context_kv: Tensor | None = None,
    context_lengths: Tensor | None = None,
    rescale: str = "mlp",
    score_scale: float = 1.0,
    eps: float = 1e-6,
    mlp_eps: float | None = None,
    forward_only: str = "none",
) -> Tensor:
    """Both bins of one routed block, blended, from a selection that `route` made with keep_small.

    x [B, N, D]; index [T], logits [B, N]; modulation [B, 6, D]; context_kv [B, M, 2, D]. forward_only:
    "small" or "large", a bin whose weight is 0 in every sample: it is computed for the gradient of the
    weights alone. Returns [B, N, D].
    """
    tokens = x.shape[1]
    rows, small = sum(keep_large), sum(keep_small)
    if rows == 0:
        return x.clone(memory_format=torch.contiguous_format)
    if steps.fp32_modulation:
        modulation = modulation.float()
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
    offsets, small_offsets = (_offsets(keep, x) for keep in (keep_large, keep_small))
    at = reference.small_rows(offsets, small_offsets, small)

    hidden, normed = steps.gather_adaln(x, index, shift1, scale1, eps)
    again = partial(steps.adaln, hidden.detach(), index, tokens, shift1, scale1, eps)
    qkv = without_keeping(linears.qkv, normed, again)
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).unbind(1)
    del normed

    large = Rows(index, keep_large, offsets, gate1, shift2, scale2, context_kv, context_lengths)
    small_only = replace(large, index=index[at], keep=keep_small, offsets=small_offsets)
    options = steps, linears, tokens, num_heads, eps if mlp_eps is None else mlp_eps
    if forward_only == "none":
        longest = max(keep_large), max(keep_small)
        attended = steps.two_bin_attention(
            query, key, value, offsets, small_offsets, *longest, small, None
        ).flatten(1)
        both = _joined(large, small_only, tokens)
        hidden, pre = _streams(*options, with_small_rows(hidden, at), attended, both)
    else:
        with _gradient(forward_only != "large"):
            attended = _attended(steps, (query, key, value), large)
            hidden_large, pre_large = _streams(*options, hidden, attended, large)
        with _gradient(forward_only != "small"):
            attended = _attended(steps, [small_rows_of(t, at) for t in (query, key, value)], small_only)
            hidden_small, pre_small = _streams(*options, small_rows_of(hidden, at), attended, small_only)
        hidden, pre = torch.cat([hidden_large, hidden_small]), torch.cat([pre_large, pre_small])
    bins = weight_large, offsets, small_offsets
    gelu = partial(steps.two_bin_gelu, pre.detach(), weight_large.detach(), *bins[1:], rows)
    branch = without_keeping(linears.fc2, steps.two_bin_gelu(pre, *bins, rows), gelu).to(x.dtype)
    if linears.fc2_bias is not None:
        added = 1 if linears.fc2_adds_bias else 0
        branch = _weigh_bias(branch, linears.fc2_bias, added, *bins, index, tokens)
    return steps.two_bin_blend(x, index, hidden, branch, gate2, logits, *bins, rescale, score_scale)


@contextmanager
def _gradient(wanted: bool) -> Iterator[None]:
    """Inside, the steps have a gradient if it is on and wanted.

    Without one they keep no casts of weights: in torch 2.10 autocast hands a cast that was made without
    a gradient to those who want one. Compiled graphs keep none.
    """
    without = torch.is_grad_enabled() and not wanted
    kept = without and not torch.compiler.is_compiling() and torch.is_autocast_cache_enabled()
    with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
        if kept:
            torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            if kept:
                torch.set_autocast_cache_enabled(True)


def _offsets(keep: list[int], x: Tensor) -> Tensor:
    """Offsets of the kept counts: a traced x gets no tensor that was made before."""
    return (packed_offsets if type(x) is Tensor else reference.packed_offsets)(keep, x.device)


def _joined(large: Rows, small: Rows, tokens: int) -> Rows:
    samples = len(large.keep)

    def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
        return None if first is None else torch.cat([first, second])

    return Rows(
        both(large.index, small.index + samples * tokens),
        large.keep + small.keep,
        both(large.offsets, large.offsets[-1] + small.offsets[1:]),
        both(large.gate1, small.gate1),
        both(large.shift2, small.shift2),
        both(large.scale2, small.scale2),
        both(large.context_kv, small.context_kv),
        both(large.context_lengths, small.context_lengths),
    )


def _attended(steps: Steps, qkv: Sequence[Tensor], rows: Rows) -> Tensor:
    """Attention among the rows of one bin [t, D]: one pass over both would have one backward for both."""
    if sum(rows.keep) == 0:
        return qkv[0].flatten(1)
    packing = rows.offsets, rows.offsets, max(rows.keep), max(rows.keep)
    return steps.self_attention(*qkv, *packing, None, None).flatten(1)


def _streams(
    steps: Steps,
    linears: Linears,
    tokens: int,
    num_heads: int,
    eps: float,
    hidden: Tensor,
    attended: Tensor,
    rows: Rows,
) -> tuple[Tensor, Tensor]:
    """The residual stream of packed rows after both attentions [t, D], and what fc1 makes of it [t, F]."""
    dtype = hidden.dtype
    hidden = steps.gate_residual(hidden, linears.out(attended), rows.gate1, rows.index, tokens, rows.keep)
    if rows.context_kv is not None:
        query = linears.cross_q(hidden).unflatten(-1, (num_heads, -1))
        samples, length = rows.context_kv.shape[:2]
        context_offsets = reference.packed_offsets([length] * samples, hidden.device)
        key, value = rows.context_kv.to(query.dtype).flatten(0, 1).unflatten(-1, (num_heads, -1)).unbind(1)
        attended = steps.cross_attention(
            query,
            key,
            value,
            rows.offsets,
            context_offsets,
            max(rows.keep),
            length,
            rows.context_lengths,
            None,
        )
        hidden = (hidden + linears.cross_out(attended.flatten(1))).to(dtype)
    vectors = rows.index, tokens, rows.shift2, rows.scale2, eps
    again = partial(steps.adaln, hidden.detach(), *vectors)
    return hidden, without_keeping(linears.fc1, steps.adaln(hidden, *vectors), again)


def _weigh_bias(branch, bias, added, weight_large, large_offsets, small_offsets, index, tokens) -> Tensor:
    """fc2's bias counts once on small rows and w times on those that only the large bin keeps.

    `added` of it are there. With w near 0 what is left of 1 has lost digits, and its gradient too.
    """
    sample = index // tokens
    place = torch.arange(index.shape[0], device=index.device) - large_offsets[:-1][sample]
    only_large = place >= small_offsets.diff()[sample]
    weight = weight_large.to(torch.promote_types(branch.dtype, torch.float32))
    missing = torch.where(only_large, weight[sample] - added, 1 - added)
    device = "cpu" if branch.is_meta else branch.device.type
    with torch.autocast(device, enabled=False):  # which, on CUDA, would round all of branch
        return torch.addr(branch, missing.to(branch.dtype), bias.to(branch.dtype))
