"""`gate_residual` in eager PyTorch."""

from torch import Tensor

from ...types import PackedRows
from ..route.reference import accumulation_dtype


def gate_residual(hidden: Tensor, branch: Tensor, gate: Tensor, rows: PackedRows) -> Tensor:
    """hidden + gate * branch; hidden, branch [T, D]; gate [B, D] or [G, D] of each row's sample or group."""
    dtype = accumulation_dtype(hidden.dtype)
    gates = gate.to(dtype)[rows.index // rows.tokens if rows.groups is None else rows.groups]
    return (hidden.to(dtype) + gates * branch.to(dtype)).to(hidden.dtype)
