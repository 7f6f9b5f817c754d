"""`gate_residual` in eager PyTorch."""

from torch import Tensor

from ...types import PackedRows, RowNorm
from ..route.reference import accumulation_dtype


def gate_residual(
    hidden: Tensor, branch: Tensor, gate: Tensor, rows: PackedRows, norm: RowNorm | None = None
) -> Tensor:
    """hidden + gate * norm(branch); hidden, branch [T, D]; gate [B, D] or [G, D] of each row's sample or
    group."""
    dtype = accumulation_dtype(hidden.dtype)
    branch = branch.to(dtype) if norm is None else norm(branch.to(dtype))
    return (hidden.to(dtype) + gate.to(dtype)[rows.owner] * branch).to(hidden.dtype)
