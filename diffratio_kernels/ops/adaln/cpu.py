"""`gather_adaln` and `adaln` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import PackedRows
from ..cpu import accumulation, groups_of, native, row_map_of


def gather_adaln(
    x: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, norm: str = "layer"
) -> tuple[Tensor, Tensor]:
    """Kept rows of x [B, N, D] and the same after adaLN: two tensors [T, D]."""
    gathered = torch.empty(rows.index.shape[0], x.shape[2], dtype=x.dtype)
    normed = torch.empty_like(gathered)
    vectors = accumulation(shift, x), accumulation(scale, x)
    places = rows.index.contiguous(), rows.tokens, groups_of(rows)
    native.gather_adaln(x.contiguous(), *places, *vectors, norm, eps, gathered, normed)
    return gathered, normed


def adaln(
    hidden: Tensor, rows: PackedRows, shift: Tensor, scale: Tensor, eps: float, norm: str = "layer"
) -> Tensor:
    """adaLN of packed rows [T, D]."""
    normed = torch.empty(hidden.shape, dtype=hidden.dtype)
    vectors = accumulation(shift, hidden), accumulation(scale, hidden)
    places = rows.index.contiguous(), rows.tokens, groups_of(rows)
    native.gather_adaln(hidden.contiguous(), *places, *vectors, norm, eps, None, normed)
    return normed


def adaln_backward(
    hidden: Tensor,
    rows: PackedRows,
    scale: Tensor,
    eps: float,
    grad_rows: Tensor | None,
    grad_normed: Tensor,
    x_rows: int | None,
    norm: str = "layer",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden [T, D] or, with x_rows, of the flattened x [x_rows, D] that it was gathered from;
    and of shift and scale [B, D], with groups [G, D].

    grad_rows: gradient of the gathered rows themselves, if any.
    """
    count, width = hidden.shape
    scale = accumulation(scale, hidden)
    grad_x = torch.empty(count if x_rows is None else x_rows, width, dtype=hidden.dtype)
    stats = torch.empty(count, 2, dtype=scale.dtype)
    grad_shift, grad_scale = torch.zeros_like(scale), torch.zeros_like(scale)
    native.gather_adaln_backward(
        hidden.contiguous(), rows.index.contiguous(),
        None if x_rows is None else row_map_of(rows, x_rows), rows.tokens, groups_of(rows), scale,
        None if grad_rows is None else grad_rows.contiguous(), grad_normed.contiguous(), norm, eps,
        grad_x, stats, grad_shift, grad_scale,
    )  # fmt: skip
    return grad_x, grad_shift, grad_scale
