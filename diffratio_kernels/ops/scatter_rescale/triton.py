"""Finish the kept rows (residual + gated branch, rescaled by the router score) and scatter them into a copy
of x.

Backward: every row of x once, gate gradients without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import (
    FEW_REGISTERS,
    ROWS_PER_SLICE,
    accumulator,
    launch,
    row_block,
    row_map_of,
    unit_rows,
)  # fmt: skip
from ..._triton.slices import (
    Slices,
    at_place,
    groups_of,
    leave,
    owner_of,
    put_row,
    row_at,
    slice_of,
    slot,
    token_at,
    vector_of,
)  # fmt: skip
from ...types import Finish
from ..branch_norm import gradients
from ..gate_residual.triton import branch_gradient, norm_of, normed_branch, unit_branch


@triton.jit
def finish(x, hidden, update, RESCALE: tl.constexpr):
    """A finished row is base + factor * delta, where the factor is the score (1 for "none")."""
    if RESCALE == "residual":
        # in this order: hidden and x are close, their difference exact
        base, delta = x, (hidden - x) + update
    elif RESCALE == "output":
        base, delta = 0.0, hidden + update
    else:
        base, delta = hidden, update
    return base, delta


@triton.jit
def _scatter_rescale_fwd(
    x_ptr, index_ptr, row_map_ptr, groups_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr, weight_ptr,
    bias_ptr, out_ptr, tokens, stride_gate, score_scale, eps, RESCALE: tl.constexpr, NORM: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    if row_map_ptr is None:  # in place: one program per kept row
        t = tl.program_id(0).to(tl.int64)
        row = tl.load(index_ptr + t)
    else:  # one program per row of x
        row = tl.program_id(0).to(tl.int64)
        t = tl.load(row_map_ptr + row).to(tl.int64)
    x_ptr += row * D
    out_ptr += row * D
    if t < 0:
        tl.store(out_ptr + d, tl.load(x_ptr + d, mask=d < D), mask=d < D)
    else:
        owner = owner_of(groups_ptr, row, tokens)
        gate = tl.load(gate_ptr + owner * stride_gate + d, mask=d < D)  # all loads before a norm's sums
        hidden = tl.load(hidden_ptr + t * D + d, mask=d < D)
        factor = 1.0
        x = hidden
        if RESCALE != "none":
            factor = score_scale * tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
        if RESCALE == "residual":
            x = tl.load(x_ptr + d, mask=d < D)
        branch = tl.load(branch_ptr + t * D + d, mask=d < D).to(tl.float32)
        unit, _ = unit_branch(branch, d, eps, D, NORM)
        branch = normed_branch(unit, weight_ptr, bias_ptr, d, D)
        update = gate.to(tl.float32) * branch
        base, delta = finish(x.to(tl.float32), hidden.to(tl.float32), update, RESCALE)
        tl.store(out_ptr + d, (base + factor * delta).to(out_ptr.dtype.element_ty), mask=d < D)


def scatter_rescale(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x."""
    x, gate, rescale = given.x.contiguous(), unit_rows(given.gate), given.rescale
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kind, *vectors, eps = norm_of(given.norm)
    launch(
        _scatter_rescale_fwd, (row_map.shape[0],),
        x, None, row_map, groups_of(given.rows), given.hidden.contiguous(), given.branch.contiguous(), gate,
        given.logits.contiguous(), *vectors, out, x.shape[1], gate.stride(0), rescale.score_scale, eps,
        RESCALE=rescale.mode, NORM=kind, **row_block(x.shape[2]),
    )  # fmt: skip
    return out


def scatter_rescale_(given: Finish) -> None:
    """The same into x itself, which must be contiguous: only the kept rows are read and written."""
    x, gate, rescale = given.x, unit_rows(given.gate), given.rescale
    index = given.rows.index.contiguous()
    kind, *vectors, eps = norm_of(given.norm)
    launch(
        _scatter_rescale_fwd, (index.shape[0],),
        x, index, None, groups_of(given.rows), given.hidden.contiguous(), given.branch.contiguous(), gate,
        given.logits.contiguous(), *vectors, x, x.shape[1], gate.stride(0), rescale.score_scale, eps,
        RESCALE=rescale.mode, NORM=kind, **row_block(x.shape[2]),
    )  # fmt: skip


@triton.jit
def _scatter_rescale_bwd(
    grad_ptr, x_ptr, row_map_ptr, order_ptr, groups_ptr, hidden_ptr, branch_ptr, gate_ptr, logits_ptr,
    weight_ptr, bias_ptr, grad_x_ptr, grad_hidden_ptr, grad_branch_ptr, grad_logits_ptr, partial_ptr,
    plain_ptr, tokens, stride_gate, score_scale, eps, RESCALE: tl.constexpr, NORM: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    sample = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    begin, end = sample * tokens + part * ROWS, (sample + 1) * tokens
    token_of, packed, owners = slice_of(row_map_ptr, order_ptr, groups_ptr, begin, end, ROWS)
    group = sample if order_ptr is None else at_place(owners, 0)
    total = tl.zeros((BLOCK_D,), tl.float32)
    plain = tl.zeros((BLOCK_D,), tl.float32)
    for place in range(begin, tl.minimum(begin + ROWS, end)):
        row, t = token_at(order_ptr, token_of, place, begin), at_place(packed, place - begin)
        raw = row_at(grad_ptr, row, d, D)
        if order_ptr is not None:
            own = at_place(owners, place - begin)
            if own != group:
                leave(partial_ptr, plain_ptr, part + group, total, plain, d, D)
                total = tl.zeros((BLOCK_D,), tl.float32)
                plain = tl.zeros((BLOCK_D,), tl.float32)
                group = own
        if t < 0:
            put_row(grad_x_ptr, row, raw, d, D)
            tl.store(grad_logits_ptr + row, 0.0)
        else:
            branch = row_at(branch_ptr, t, d, D).to(tl.float32)
            grad = raw.to(tl.float32)
            unit, rstd = unit_branch(branch, d, eps, D, NORM)
            sigmoid = tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
            factor = 1.0 if RESCALE == "none" else score_scale * sigmoid
            hidden_weight = factor if RESCALE == "residual" or RESCALE == "output" else 1.0
            x_weight = 1 - factor if RESCALE == "residual" else 0.0
            put_row(grad_x_ptr, row, x_weight * grad, d, D)
            put_row(grad_hidden_ptr, t, hidden_weight * grad, d, D)
            total += factor * unit * grad
            if plain_ptr is not None:
                plain += factor * grad
            update = normed_branch(unit, weight_ptr, bias_ptr, d, D)
            update *= vector_of(gate_ptr, group, stride_gate, d, D)
            hidden = row_at(hidden_ptr, t, d, D).to(tl.float32)
            x = row_at(x_ptr, row, d, D).to(tl.float32) if RESCALE == "residual" else 0.0
            base, delta = finish(x, hidden, update, RESCALE)
            grad_factor = tl.sum(grad * delta, axis=0)
            # A logit without a say may be NaN.
            grad_logit = 0.0 if RESCALE == "none" else grad_factor * factor * (1 - sigmoid)
            tl.store(grad_logits_ptr + row, grad_logit)
            grad *= factor * vector_of(gate_ptr, group, stride_gate, d, D)
            to_branch = branch_gradient(grad, unit, rstd, weight_ptr, d, D, NORM)
            put_row(grad_branch_ptr, t, to_branch, d, D)
    leave(partial_ptr, plain_ptr, slot(order_ptr, part, sample, group), total, plain, d, D)


def scatter_rescale_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor | None, ...]:
    """As the CPU kernels' `scatter_rescale_backward`."""
    x, rescale, exact = given.x, given.rescale, (given.x, given.hidden, given.branch)
    batch, tokens, width = x.shape
    gate, slices = unit_rows(given.gate), Slices.of(given.rows, given.gate.shape[0])
    grads = [torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in exact]
    grad_logits = accumulator(batch, tokens, like=x)
    partial = slices.partial(width, x)
    kind, weight, bias, eps = norm_of(given.norm)
    plain = None if bias is None else slices.partial(width, x)
    held = 8 if given.rows.groups is None and given.norm is None else 4
    launch(
        _scatter_rescale_bwd, slices.grid,
        grad_out.contiguous(), x.contiguous(), row_map_of(given.rows, batch * tokens), slices.order,
        slices.groups, given.hidden.contiguous(), given.branch.contiguous(), gate, given.logits.contiguous(),
        weight, bias, *grads, grad_logits, partial, plain, slices.tokens, gate.stride(0),
        rescale.score_scale, eps, RESCALE=rescale.mode, NORM=kind, ROWS=ROWS_PER_SLICE,
        **row_block(width, held), **FEW_REGISTERS,
    )  # fmt: skip
    plain = None if plain is None else slices.total(plain)
    grad_gate, *of_norm = gradients(given.gate, given.norm, slices.total(partial), plain)
    return *grads, grad_gate, grad_logits, *of_norm
