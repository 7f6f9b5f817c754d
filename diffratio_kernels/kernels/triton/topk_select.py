"""Exact top-k per sample and the ordered list of the kept rows, in one launch.

Order: larger logit first, -0 equals +0, NaN below -inf, ties to the lowest token. A radix select, eight
bits at a time, finds the key of the k-th largest; a second pass over the logits writes every token above it,
and as many of those equal to it as are wanted, in ascending order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch


@triton.jit
def _order_keys(logits_ptr, start, tokens, BLOCK: tl.constexpr):
    """Keys (uint32, ordered like the logits) of the tokens from `start`, and which of them exist."""
    token = start + tl.arange(0, BLOCK)
    logit = tl.load(logits_ptr + token, mask=token < tokens, other=0.0) + 0.0  # -0 becomes +0
    bits = logit.to(tl.uint32, bitcast=True)
    key = bits ^ tl.where(bits >= 0x80000000, 0xFFFFFFFF, 0x80000000)
    return tl.where(logit == logit, key, 0), token < tokens


@triton.jit
def _next_digit(logits_ptr, tokens, shift, prefix, wanted, BLOCK: tl.constexpr):
    """Eight more bits of the wanted key, and how many keys with these bits are still wanted."""
    counts = tl.zeros((256,), tl.int32)
    for start in range(0, tokens, BLOCK):
        key, valid = _order_keys(logits_ptr, start, tokens, BLOCK)
        # Bits above the digit must equal those found before; in the first pass there are none.
        candidate = valid & ((key >> shift >> 8) == (prefix >> shift >> 8))
        counts += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=candidate)
    at_least = tl.cumsum(counts, axis=0, reverse=True)
    digit = tl.sum((at_least >= wanted).to(tl.int32), axis=0) - 1
    above = tl.sum(tl.where(tl.arange(0, 256) == digit, at_least - counts, 0), axis=0)
    return prefix | (digit.to(tl.uint32) << shift), wanted - above


@triton.jit
def _kept(key, valid, prefix, wanted, ties):
    """Which tokens are kept, and how many equal to the k-th largest were met so far."""
    tie = (valid & (key == prefix)).to(tl.int32)
    kept = (valid & (key > prefix)) | ((tie == 1) & (ties + tl.cumsum(tie, axis=0) <= wanted))
    return kept, ties + tl.sum(tie, axis=0)


@triton.jit(do_not_specialize=["equal_keep"])
def _topk_select(
    logits_ptr, equal_keep, offsets_ptr, keep_small_ptr, index_ptr, place_ptr, tokens, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    logits_ptr += sample * tokens
    if equal_keep is None:
        first = tl.load(offsets_ptr + sample).to(tl.int64)
        keep = tl.load(offsets_ptr + sample + 1) - first.to(tl.int32)
    else:  # the offsets are written
        first = sample * equal_keep
        keep = tl.full((), equal_keep, tl.int32)
        tl.store(offsets_ptr + sample, first.to(tl.int32))
        tl.store(offsets_ptr + sample + 1, (first + equal_keep).to(tl.int32))
    prefix = tl.full((), 0, tl.uint32)
    wanted = keep
    for digit in range(tl.where(keep == tokens, 0, 4)):  # all kept: the key 0, and as many ties as wanted
        prefix, wanted = _next_digit(logits_ptr, tokens, 24 - 8 * digit, prefix, wanted, BLOCK)
    if keep_small_ptr is not None:
        small = tl.load(keep_small_ptr + sample)
        prefix_small = tl.full((), 0, tl.uint32)
        wanted_small = small
        for digit in range(4):
            prefix_small, wanted_small = _next_digit(
                logits_ptr, tokens, 24 - 8 * digit, prefix_small, wanted_small, BLOCK
            )
        ties_small, taken_small = 0, 0

    ties, taken = 0, 0
    for start in range(0, tokens, BLOCK):
        key, valid = _order_keys(logits_ptr, start, tokens, BLOCK)
        kept, ties = _kept(key, valid, prefix, wanted, ties)
        place = taken + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        taken += tl.sum(kept.to(tl.int32), axis=0)
        if keep_small_ptr is not None:  # rows of the small bin first, then those that only the large bin has
            in_small, ties_small = _kept(key, valid, prefix_small, wanted_small, ties_small)
            place_small = taken_small + tl.cumsum(in_small.to(tl.int32), axis=0) - 1
            taken_small += tl.sum(in_small.to(tl.int32), axis=0)
            place = tl.where(in_small, place_small, small + place - place_small - 1)
        row = sample * tokens + start + tl.arange(0, BLOCK)
        tl.store(index_ptr + first + place, row, mask=kept)
        if place_ptr is not None:
            packed = tl.where(kept, first + place, -1).to(tl.int32)
            tl.store(place_ptr + row, packed, mask=valid)


def topk_select(logits: Tensor, offsets: Tensor, kept: int, keep_small: Tensor | None = None) -> Tensor:
    """logits [B, N] fp32, offsets [B+1] int32 on the kept counts -> index [T] int64, T = kept = offsets[-1].

    keep_small [B] int32, a smaller kept count: its rows come first in each sample, both parts ascending.
    """
    index = torch.empty(kept, dtype=torch.int64, device=logits.device)
    _run(logits, None, offsets.contiguous(), keep_small, index, None)
    return index


def topk_places(
    logits: Tensor, keep: list[int], offsets: Tensor | None, keep_small: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`topk_select` of keep[b] tokens a sample, their offsets, and `row_places` of the index, in one launch.

    offsets: None where all samples keep as many, then the kernel writes them.
    """
    index = torch.empty(sum(keep), dtype=torch.int64, device=logits.device)
    place = torch.empty(logits.numel(), dtype=torch.int32, device=logits.device)
    equal_keep = keep[0] if offsets is None else None
    if offsets is None:
        offsets = torch.empty(len(keep) + 1, dtype=torch.int32, device=logits.device)
    _run(logits, equal_keep, offsets.contiguous(), keep_small, index, place)
    return index, offsets, place


def _run(logits, equal_keep, offsets, keep_small, index, place):
    batch, tokens = logits.shape
    keep_small = None if keep_small is None else keep_small.contiguous()
    block = min(triton.next_power_of_2(max(tokens, 256)), 4096)
    launch(
        _topk_select, (batch,),
        logits.contiguous(), equal_keep, offsets, keep_small, index, place, tokens,
        BLOCK=block, num_warps=max(block // 256, 4),
    )  # fmt: skip
