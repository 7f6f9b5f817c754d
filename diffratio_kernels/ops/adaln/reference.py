"""`gather_adaln` and `adaln` in eager PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from ...types import PackedRows
from ..route.reference import accumulation_dtype


def adaln(
    hidden: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, norm: str = "layer"
) -> Tensor:
    """norm(hidden) * (1 + scale) + shift, with the shift and scale of each row's own sample or group.

    hidden [T, D]; shift, scale [B, D] or [G, D]. The norm ("layer" or "rms") has no affine; statistics in at
    least fp32, one rounding at the end.
    """
    dtype = accumulation_dtype(hidden.dtype)
    owner = rows.owner
    normalize = F.layer_norm if norm == "layer" else F.rms_norm
    normed = normalize(hidden.to(dtype), hidden.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(dtype)[owner]) + shift.to(dtype)[owner]).to(hidden.dtype)


def gather_adaln(
    x: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, norm: str = "layer"
) -> tuple[Tensor, Tensor]:
    """The kept rows of x [B, N, D], and the same rows after adaLN: two tensors [T, D]."""
    gathered = x.flatten(0, 1)[rows.index]
    return gathered, adaln(gathered, rows, shift, scale, eps, norm)
