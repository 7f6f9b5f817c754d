"""`gather_adaln` and `adaln` in eager PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from ...types import PackedRows
from ..route.reference import accumulation_dtype


def adaln(hidden: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LN(hidden) * (1 + scale) + shift, with the shift and scale [B, D] of each row's own sample.

    hidden [T, D]. LN has no affine; statistics in at least fp32, one rounding at the end.
    """
    dtype = accumulation_dtype(hidden.dtype)
    sample = rows.index // rows.tokens
    normed = F.layer_norm(hidden.to(dtype), hidden.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(dtype)[sample]) + shift.to(dtype)[sample]).to(hidden.dtype)


def gather_adaln(
    x: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The kept rows of x [B, N, D], and the same rows after adaLN: two tensors [T, D]."""
    gathered = x.flatten(0, 1)[rows.index]
    return gathered, adaln(gathered, rows, shift, scale, eps)
