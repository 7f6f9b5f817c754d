"""What the launchers of the C++ row kernels (csrc/cpu) share. They allocate outputs and bring inputs into the
layout that the kernels read. Outputs come from `torch.empty`, so that the test bench can poison them."""

import torch
from torch import Tensor

from ..types import Bins, Finish, PackedRows, RowNorm

native = torch.ops.diffratio_native


def accumulation(t: Tensor, like: Tensor) -> Tensor:
    """`t` in the dtype that the kernels add up in: fp32, fp64 for fp64."""
    return t.to(torch.promote_types(like.dtype, torch.float32)).contiguous()


def row_map_of(rows: PackedRows, count: int) -> Tensor:
    """The row map of `count` rows of x, made where it is not there yet."""
    if rows.row_map is not None:
        return rows.row_map
    row_map = torch.empty(count, dtype=torch.int32)
    bad = native.row_map(rows.index.contiguous(), row_map)
    if bad >= 0:
        raise ValueError(f"index[{bad}] must be in 0..{count - 1} (rows of x) and occur only once")
    return row_map


def groups_of(rows: PackedRows) -> Tensor | None:
    """The groups as the kernels read them."""
    return None if rows.groups is None else rows.groups.contiguous()


def two_bins(bins: Bins, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """weight_large, cu_seqlens_large and cu_seqlens_small as the kernels read them."""
    weight_large = accumulation(bins.weight_large, like)
    return weight_large, bins.cu_seqlens_large.contiguous(), bins.cu_seqlens_small.contiguous()


def norm_of(norm: RowNorm | None, like: Tensor) -> tuple:
    """Kind, weight, bias and eps of a branch's norm as the kernels read them."""
    if norm is None:
        return "none", None, None, 0.0
    vectors = (None if t is None else accumulation(t, like) for t in (norm.weight, norm.bias))
    return norm.kind, *vectors, norm.eps


class GateSums:
    """What a backward kernel leaves for the gradients of gate and norm: `ops.branch_norm.gradients`."""

    def __init__(self, gate: Tensor, branch: Tensor, norm: RowNorm | None):
        dtype = torch.promote_types(branch.dtype, torch.float32)
        self.stats = None if norm is None else torch.empty(branch.shape[0], 2, dtype=dtype)
        self.normed = torch.zeros(gate.shape, dtype=dtype)
        self.plain = None if norm is None or norm.bias is None else torch.zeros(gate.shape, dtype=dtype)

    def outputs(self) -> tuple:
        return self.stats, self.normed, self.plain


def finish(given: Finish) -> tuple:
    """What finishes rows, but x and the places of its rows, as the kernels read it."""
    x, bins, rescale = given.x, given.rows.bins, given.rescale
    of_bins = () if bins is None else two_bins(bins, x)
    groups, norm = (), ()
    if bins is None:
        groups, norm = (groups_of(given.rows),), norm_of(given.norm, x)
    vectors = accumulation(given.gate, x), accumulation(given.logits, x)
    branches = given.hidden.contiguous(), given.branch.contiguous()
    return x.shape[1], *groups, *branches, *vectors, *of_bins, rescale.mode, rescale.score_scale, *norm
