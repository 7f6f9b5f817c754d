"""hidden + gate * branch with the gate of each row's own sample, and its backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import ROWS_PER_SLICE, accumulator, launch, row_block, row_map_of, unit_rows
from ...types import PackedRows


@triton.jit
def _gate_residual_fwd(
    hidden_ptr, branch_ptr, gate_ptr, index_ptr, out_ptr, tokens, stride_gate,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    sample = tl.load(index_ptr + t) // tokens
    hidden = tl.load(hidden_ptr + t * D + d, mask=d < D).to(tl.float32)
    branch = tl.load(branch_ptr + t * D + d, mask=d < D).to(tl.float32)
    gate = tl.load(gate_ptr + sample * stride_gate + d, mask=d < D).to(tl.float32)
    tl.store(out_ptr + t * D + d, (hidden + gate * branch).to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _gate_residual_bwd(
    grad_ptr, branch_ptr, gate_ptr, row_map_ptr, grad_branch_ptr, partial_ptr, tokens, stride_gate,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    gate = tl.load(gate_ptr + sample * stride_gate + d, mask=d < D, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    begin = sample * tokens + part * ROWS
    for token in range(begin, tl.minimum(begin + ROWS, (sample + 1) * tokens)):
        t = tl.load(row_map_ptr + token).to(tl.int64)
        if t >= 0:
            grad = tl.load(grad_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
            total += grad * tl.load(branch_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
            tl.store(
                grad_branch_ptr + t * D + d, (grad * gate).to(grad_branch_ptr.dtype.element_ty), mask=d < D
            )
    tl.store(partial_ptr + (sample * tl.num_programs(0) + part) * D + d, total, mask=d < D)


def gate_residual(
    hidden: Tensor, branch: Tensor, gate: Tensor, rows: PackedRows, in_place: bool = False
) -> Tensor:
    """hidden + gate * branch; hidden, branch [T, D]; gate [B, D] of any float dtype -> [T, D].

    in_place writes the result to `hidden`, which must be contiguous.
    """
    hidden, gate = hidden.contiguous(), unit_rows(gate)
    out = hidden if in_place else torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    launch(
        _gate_residual_fwd, (hidden.shape[0],),
        hidden, branch.contiguous(), gate, rows.index.contiguous(), out, rows.tokens, gate.stride(0),
        **row_block(hidden.shape[1]),
    )  # fmt: skip
    return out


def gate_residual_backward(
    grad_out: Tensor, branch: Tensor, gate: Tensor, rows: PackedRows
) -> tuple[Tensor, Tensor]:
    """Gradients of branch [T, D] in its dtype and of gate [B, D] in fp32; that of hidden is grad_out."""
    (batch, width), tokens = gate.shape, rows.tokens
    gate, slices = unit_rows(gate), triton.cdiv(tokens, ROWS_PER_SLICE)
    grad_branch = torch.empty(branch.shape, dtype=branch.dtype, device=branch.device)
    partial = accumulator(batch, slices, width, like=branch)
    launch(
        _gate_residual_bwd, (slices, batch),
        grad_out.contiguous(), branch.contiguous(), gate, row_map_of(rows, batch * tokens),
        grad_branch, partial, tokens, gate.stride(0), ROWS=ROWS_PER_SLICE, **row_block(width),
    )  # fmt: skip
    return grad_branch, partial.sum(1)
