"""Blend the residual streams of two bins, finish the kept rows as scatter_rescale does, put them back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, row_block, unit_rows
from .row_places import row_places
from .two_bin_rows import columns_if, small_row


@triton.jit
def blend(x, large, small, update, weight, in_small, RESCALE: tl.constexpr):
    """A finished row is base + factor * delta, where the factor is the score (1 for "none").

    A row that the small bin does not have went through it unchanged, so there x takes its place.
    """
    other = tl.where(in_small, small, x)
    if RESCALE == "residual":  # differences first: hidden and x are close
        base, delta = x, weight * (large - x) + (1 - weight) * (other - x) + update
    elif RESCALE == "output":  # and x is not rescaled
        base = tl.where(in_small, 0.0, (1 - weight) * x)
        delta = weight * large + tl.where(in_small, (1 - weight) * small, 0.0) + update
    else:
        base, delta = weight * large + (1 - weight) * other, update
    return base, delta


@triton.jit
def _two_bin_blend(
    x_ptr, place_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr, weight_ptr, large_offsets_ptr,
    small_offsets_ptr, out_ptr, tokens, rows, stride_gate, score_scale,
    RESCALE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    t = tl.load(place_ptr + row).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    x_ptr += row * D
    out_ptr += row * D
    if t < 0:
        tl.store(out_ptr + d, tl.load(x_ptr + d, mask=d < D), mask=d < D)
    else:
        sample = row // tokens
        in_small, other = small_row(large_offsets_ptr, small_offsets_ptr, sample, t, rows)
        weight = tl.load(weight_ptr + sample).to(tl.float32)
        large = tl.load(hidden_ptr + t * D + d, mask=d < D).to(tl.float32)
        small = tl.load(hidden_ptr + other * D + d, mask=columns_if(in_small, d < D)).to(tl.float32)
        branch = tl.load(branch_ptr + t * D + d, mask=d < D).to(tl.float32)
        gate = tl.load(gate_ptr + sample * stride_gate + d, mask=d < D).to(tl.float32)
        needs_x = (d < D) if RESCALE == "residual" else columns_if(in_small == 0, d < D)
        x = tl.load(x_ptr + d, mask=needs_x).to(tl.float32)
        factor = 1.0
        if RESCALE != "none":
            factor = score_scale * tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
        base, delta = blend(x, large, small, gate * branch, weight, in_small, RESCALE)
        tl.store(out_ptr + d, (base + factor * delta).to(out_ptr.dtype.element_ty), mask=d < D)


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
    rescale: str,
    score_scale: float,
) -> Tensor:
    """A new [B, N, D]: kept rows blended, finished and rescaled, the others as in x.

    index [T], the small set first in each sample; hidden [T + S, D] of both bins; branch [T, D].
    """
    x, gate = x.contiguous(), unit_rows(gate)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    place = row_places(index, x.shape[0] * x.shape[1])
    launch(
        _two_bin_blend, (place.shape[0],),
        x, place, hidden.contiguous(), branch.contiguous(), gate, logits.contiguous(),
        weight_large.contiguous(), large_offsets.contiguous(), small_offsets.contiguous(),
        out, x.shape[1], index.shape[0], gate.stride(0), score_scale,
        RESCALE=rescale, **row_block(x.shape[2]),
    )  # fmt: skip
    return out
