"""Finish the kept rows (residual + gated branch, rescaled by the router score) and put them back; the next
router's logits of every row, while the row is in registers."""

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
def _next_logit(values, row, d, weight_ptr, bias_ptr, logits_ptr, D: tl.constexpr):
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    logit = tl.sum(tl.where(d < D, values.to(tl.float32) * weight, 0.0))
    if bias_ptr is not None:
        logit += tl.load(bias_ptr).to(tl.float32)
    tl.store(logits_ptr + row, logit)


@triton.jit
def _scatter_rescale_fwd(
    x_ptr, index_ptr, place_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr, out_ptr,
    next_weight_ptr, next_bias_ptr, next_logits_ptr,
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
        bypassed = tl.load(x_ptr + d, mask=d < D)
        tl.store(out_ptr + d, bypassed, mask=d < D)
        if next_logits_ptr is not None:
            _next_logit(bypassed, row, d, next_weight_ptr, next_bias_ptr, next_logits_ptr, D)
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
        finished = (base + factor * delta).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + d, finished, mask=d < D)
        if next_logits_ptr is not None:
            _next_logit(finished, row, d, next_weight_ptr, next_bias_ptr, next_logits_ptr, D)


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
        out, None, None, None, x.shape[1], gate.stride(0), score_scale, RESCALE=rescale,
        **row_block(x.shape[2]),
    )  # fmt: skip
    return out


def scatter_rescale_next(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str,
    score_scale: float,
    next_weight: Tensor,
    next_bias: Tensor | None,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scatter_rescale`, and the router logits [B, N] fp32 of what it returns with another layer's router.

    `router_logits` adds in another order: the last bits may differ.
    """
    x, gate = x.contiguous(), unit_rows(gate)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    next_logits = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    if place is None:
        place = row_places(index, next_logits.numel())
    launch(
        _scatter_rescale_fwd, (place.shape[0],),
        x, index.contiguous(), place, hidden.contiguous(), branch.contiguous(), gate, logits.contiguous(),
        out, next_weight.contiguous(), next_bias, next_logits, x.shape[1], gate.stride(0), score_scale,
        RESCALE=rescale, **row_block(x.shape[2]),
    )  # fmt: skip
    return out, next_logits
