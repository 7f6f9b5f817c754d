"""What the launchers of the C++ row kernels (csrc/cpu) share. They allocate outputs and bring inputs into the
layout that the kernels read. Outputs come from `torch.empty`, so that the test bench can poison them."""

import torch
from torch import Tensor

from ..types import Bins, PackedRows

native = torch.ops.diffratio_native


def accumulation(t: Tensor, like: Tensor) -> Tensor:
    """`t` in the dtype that the kernels add up in: fp32, fp64 for fp64."""
    return t.to(torch.promote_types(like.dtype, torch.float32)).contiguous()


def row_map_of(index: Tensor, rows: int) -> Tensor:
    """[rows] int32: which packed row each row of x became, -1 where none."""
    row_map = torch.empty(rows, dtype=torch.int32)
    bad = native.row_map(index.contiguous(), row_map)
    if bad >= 0:
        raise ValueError(f"index[{bad}] must be in 0..{rows - 1} (rows of x) and occur only once")
    return row_map


def row_map(rows: PackedRows, x: Tensor) -> Tensor:
    """The row map of rows of x [B, N, D], made where it is not there yet."""
    return row_map_of(rows.index, x.shape[0] * x.shape[1]) if rows.row_map is None else rows.row_map


def two_bins(bins: Bins, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """weight_large, cu_seqlens_large and cu_seqlens_small as the kernels read them."""
    weight_large = accumulation(bins.weight_large, like)
    return weight_large, bins.cu_seqlens_large.contiguous(), bins.cu_seqlens_small.contiguous()
