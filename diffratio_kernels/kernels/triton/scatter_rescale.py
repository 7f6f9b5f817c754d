"""Finish the kept rows (residual + gated branch, rescaled by the router score) and put them back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, row_block, unit_rows
from .row_places import row_places


@triton.jit
def finish(x, hidden, update, RESCALE: tl.constexpr):
    """A finished row is base + factor * delta, where the factor is the score (1 for "none")."""
    if RESCALE == "residual":
        base, delta = (
            x,
            (hidden - x) + update,
        )  # in this order: hidden and x are close, their difference exact
    elif RESCALE == "output":
        base, delta = 0.0, hidden + update
    else:
        base, delta = hidden, update
    return base, delta


@triton.jit
def _scatter_rescale_fwd(
    x_ptr, index_ptr, place_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr, out_ptr,
    tokens, stride_gate, score_scale, RESCALE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    if place_ptr is None:  # in place: one program per kept row
        t = tl.program_id(0).to(tl.int64)
        row = tl.load(index_ptr + t)
    else:  # one program per row of x
        row = tl.program_id(0).to(tl.int64)
        t = tl.load(place_ptr + row).to(tl.int64)
    x_ptr += row * D
    out_ptr += row * D
    if t < 0:
        tl.store(out_ptr + d, tl.load(x_ptr + d, mask=d < D), mask=d < D)
    else:
        hidden = tl.load(hidden_ptr + t * D + d, mask=d < D).to(tl.float32)
        branch = tl.load(branch_ptr + t * D + d, mask=d < D).to(tl.float32)
        gate = tl.load(gate_ptr + (row // tokens) * stride_gate + d, mask=d < D).to(tl.float32)
        factor = 1.0
        x = 0.0
        if RESCALE != "none":
            factor = score_scale * tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
        if RESCALE == "residual":
            x = tl.load(x_ptr + d, mask=d < D).to(tl.float32)
        base, delta = finish(x, hidden, gate * branch, RESCALE)
        tl.store(out_ptr + d, (base + factor * delta).to(out_ptr.dtype.element_ty), mask=d < D)


def scatter_rescale(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str,
    score_scale: float,
    place: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x.

    in_place writes to x itself, which must be contiguous: only the kept rows are read and written. place:
    `row_places` of index, where it is there already.
    """
    x, gate = x.contiguous(), unit_rows(gate)
    out = x if in_place else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if in_place:
        place = None
    elif place is None:
        place = row_places(index, x.shape[0] * x.shape[1])
    launch(
        _scatter_rescale_fwd, (index.shape[0] if in_place else place.shape[0],),
        x, index.contiguous(), place, hidden.contiguous(), branch.contiguous(), gate, logits.contiguous(),
        out, x.shape[1], gate.stride(0), score_scale, RESCALE=rescale, **row_block(x.shape[2]),
    )  # fmt: skip
    return out
