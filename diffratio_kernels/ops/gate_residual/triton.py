"""hidden + gate * branch, normed or as it is, with the gate of each row's own sample or group, and its
backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import FEW_REGISTERS, ROWS_PER_SLICE, launch, row_block, row_map_of, unit_rows
from ..._triton.slices import (
    Slices,
    at_place,
    groups_of,
    leave,
    owner_of,
    put_row,
    row_or_zeros,
    slice_of,
    slot,
    vector_of,
)  # fmt: skip
from ...types import PackedRows, RowNorm
from ..adaln.triton import row_stats
from ..branch_norm import gradients


@triton.jit
def unit_branch(branch, d, eps, D: tl.constexpr, NORM: tl.constexpr):
    """A branch's row normalised, and its 1/std; as it is without a norm. Elements beyond D are any."""
    rstd = 1.0
    if NORM != "none":
        mean, rstd = row_stats(tl.where(d < D, branch, 0.0), d, D, eps, NORM == "rms")
        branch = (branch - mean) * rstd
    return branch, rstd


@triton.jit
def normed_branch(unit, weight_ptr, bias_ptr, d, D: tl.constexpr):
    """What the gate multiplies."""
    if weight_ptr is not None:
        unit *= tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        unit += tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    return unit


@triton.jit
def branch_gradient(grad, unit, rstd, weight_ptr, d, D: tl.constexpr, NORM: tl.constexpr):
    """The gradient of a branch from that of what the gate multiplies."""
    if NORM != "none":
        if weight_ptr is not None:
            grad *= tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        mean = tl.sum(grad, axis=0) / D if NORM == "layer" else 0.0
        grad = rstd * (grad - mean - unit * (tl.sum(grad * unit, axis=0) / D))
    return grad


@triton.jit
def _gate_residual_fwd(
    hidden_ptr, branch_ptr, gate_ptr, index_ptr, groups_ptr, weight_ptr, bias_ptr, out_ptr,
    tokens, stride_gate, eps, NORM: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    owner = owner_of(groups_ptr, tl.load(index_ptr + t), tokens)
    hidden = tl.load(hidden_ptr + t * D + d, mask=d < D)
    gate = tl.load(gate_ptr + owner * stride_gate + d, mask=d < D)  # before a norm's sums
    branch = tl.load(branch_ptr + t * D + d, mask=d < D).to(tl.float32)
    unit, _ = unit_branch(branch, d, eps, D, NORM)
    branch = normed_branch(unit, weight_ptr, bias_ptr, d, D)
    hidden, gate = hidden.to(tl.float32), gate.to(tl.float32)
    tl.store(out_ptr + t * D + d, (hidden + gate * branch).to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _gate_residual_bwd(
    grad_ptr, branch_ptr, gate_ptr, row_map_ptr, order_ptr, groups_ptr, weight_ptr, grad_branch_ptr,
    partial_ptr, plain_ptr, tokens, stride_gate, eps, NORM: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    sample = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    begin, end = sample * tokens + part * ROWS, (sample + 1) * tokens
    _, packed, owners = slice_of(row_map_ptr, order_ptr, groups_ptr, begin, end, ROWS)
    group = sample if order_ptr is None else at_place(owners, 0)
    total = tl.zeros((BLOCK_D,), tl.float32)
    plain = tl.zeros((BLOCK_D,), tl.float32)
    next_t = at_place(packed, 0)
    next_grad, next_branch = row_or_zeros(grad_ptr, next_t, d, D), row_or_zeros(branch_ptr, next_t, d, D)
    for place in range(begin, tl.minimum(begin + ROWS, end)):
        t, grad, branch = next_t, next_grad.to(tl.float32), next_branch.to(tl.float32)
        next_t = at_place(packed, place - begin + 1)
        next_grad, next_branch = row_or_zeros(grad_ptr, next_t, d, D), row_or_zeros(branch_ptr, next_t, d, D)
        if order_ptr is not None:
            own = at_place(owners, place - begin)
            if own != group:
                leave(partial_ptr, plain_ptr, part + group, total, plain, d, D)
                total = tl.zeros((BLOCK_D,), tl.float32)
                plain = tl.zeros((BLOCK_D,), tl.float32)
                group = own
        if t >= 0:
            unit, rstd = unit_branch(branch, d, eps, D, NORM)
            total += grad * unit
            if plain_ptr is not None:
                plain += grad
            gate = vector_of(gate_ptr, group, stride_gate, d, D)
            to_branch = branch_gradient(grad * gate, unit, rstd, weight_ptr, d, D, NORM)
            put_row(grad_branch_ptr, t, to_branch, d, D)
    leave(partial_ptr, plain_ptr, slot(order_ptr, part, sample, group), total, plain, d, D)


def norm_of(norm: RowNorm | None) -> tuple:
    """Kind, weight, bias and eps of a branch's norm as the kernels read them."""
    if norm is None:
        return "none", None, None, 0.0
    vectors = (None if t is None else t.contiguous() for t in (norm.weight, norm.bias))
    return norm.kind, *vectors, norm.eps


def gate_residual(
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    rows: PackedRows,
    norm: RowNorm | None = None,
    in_place: bool = False,
) -> Tensor:
    """hidden + gate * norm(branch) [T, D]; gate [B, D], with groups [G, D], of any float dtype.

    in_place writes the result to `hidden`, which must be contiguous.
    """
    hidden, gate = hidden.contiguous(), unit_rows(gate)
    kind, *vectors, eps = norm_of(norm)
    out = hidden if in_place else torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    launch(
        _gate_residual_fwd, (hidden.shape[0],),
        hidden, branch.contiguous(), gate, rows.index.contiguous(), groups_of(rows), *vectors, out,
        rows.tokens, gate.stride(0), eps, NORM=kind, **row_block(hidden.shape[1]),
    )  # fmt: skip
    return out


def gate_residual_backward(
    grad_out: Tensor, branch: Tensor, gate: Tensor, rows: PackedRows, norm: RowNorm | None = None
) -> tuple[Tensor | None, ...]:
    """As the CPU kernels' `gate_residual_backward`."""
    owners, width = gate.shape
    gate, slices = unit_rows(gate), Slices.of(rows, owners)
    kind, weight, bias, eps = norm_of(norm)
    grad_branch = torch.empty(branch.shape, dtype=branch.dtype, device=branch.device)
    partial = slices.partial(width, branch)
    plain = None if bias is None else slices.partial(width, branch)
    # The next row stands beside a norm's sums in 64 registers where a thread holds 4 elements.
    options = row_block(width, 8) if norm is None else row_block(width, 4) | FEW_REGISTERS
    launch(
        _gate_residual_bwd, slices.grid,
        grad_out.contiguous(), branch.contiguous(), gate, row_map_of(rows, slices.count), slices.order,
        slices.groups, weight, grad_branch, partial, plain, slices.tokens, gate.stride(0), eps, NORM=kind,
        ROWS=ROWS_PER_SLICE, **options,
    )  # fmt: skip
    plain = None if plain is None else slices.total(plain)
    return grad_branch, *gradients(gate, norm, slices.total(partial), plain)
