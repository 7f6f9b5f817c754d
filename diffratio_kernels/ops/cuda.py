"""What the launchers of the CUDA C++ kernels (csrc/cuda) share. They allocate outputs and bring inputs into
the layout that the kernels read. Outputs come from `torch.empty`, so that the test bench can poison them.
Nothing waits for the device, and no value is looked at: an index out of range is undefined here."""

import torch
from torch import Tensor

from ..types import Bins, Finish, PackedRows, RowNorm

SLICE_TOKENS = 256  # kSliceTokens in column_sums.cuh
GROUP_SLICE_TOKENS = 32  # kWarp in group_sums.cuh
operators = torch.ops.diffratio_cuda
"""Those of the native library; tests put a simulator's here."""


def stream(t: Tensor) -> int:
    """The current stream of a tensor's device."""
    return torch._C._cuda_getCurrentRawStream(t.get_device()) if t.is_cuda else 0


def fp32(t: Tensor) -> Tensor:
    """`t` in contiguous fp32."""
    return (t if t.dtype == torch.float32 else t.float()).contiguous()


def fp32_rows(t: Tensor) -> Tensor:
    """[B, D] in fp32, each row contiguous: a vector of `modulation.unbind(1)` in fp32 is read where it is."""
    t = t if t.dtype == torch.float32 else t.float()
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def column_sums(like: Tensor, sums: int, samples: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """partial [slices, sums, B, D] and sums [sums, B, D]; with one slice they are the same memory."""
    slices = -(-tokens // SLICE_TOKENS)
    out = torch.empty(sums, samples, width, dtype=torch.float32, device=like.device)
    return out if slices == 1 else out.new_empty(slices, *out.shape), out


def groups_of(rows: PackedRows) -> Tensor | None:
    """The groups as the kernels read them."""
    return None if rows.groups is None else rows.groups.contiguous()


class RowSums:
    """Memory for the sums over the rows of each sample, or of each group in the order of groups."""

    def __init__(self, like: Tensor, sums: int, rows: PackedRows, owners: int, width: int):
        self.groups, self.count, self.order, self.bounds = groups_of(rows), owners * rows.tokens, None, None
        if self.groups is None:
            self.partial, self.sums = column_sums(like, sums, owners, rows.tokens, width)
            return
        self.count = self.groups.numel()
        by_group, self.order = self.groups.flatten().sort(stable=True)
        self.bounds = torch.searchsorted(by_group, torch.arange(owners + 1, device=like.device))
        self.sums = torch.empty(sums, owners, width, dtype=torch.float32, device=like.device)
        slices = -(-self.count // GROUP_SLICE_TOKENS)
        self.partial = self.sums.new_empty(slices + owners, sums, width)

    def places(self) -> tuple:
        """Groups, order and bounds."""
        return self.groups, self.order, self.bounds


def row_map_of(rows: PackedRows, count: int) -> Tensor:
    """The row map of `count` rows of x, made where it is not there yet."""
    if rows.row_map is not None:
        return rows.row_map
    row_map = torch.full((count,), -1, dtype=torch.int32, device=rows.index.device)
    operators.row_map(rows.index.contiguous(), row_map, stream(row_map))
    return row_map


def two_bins(bins: Bins) -> tuple[Tensor, Tensor, Tensor]:
    """weight_large, cu_seqlens_large and cu_seqlens_small as the kernels read them."""
    return fp32(bins.weight_large), bins.cu_seqlens_large.contiguous(), bins.cu_seqlens_small.contiguous()


def finish(given: Finish) -> tuple:
    """Rows of the packed tensors, gates, scores, weights and norm that finish rows, as the kernels read
    them."""
    bins, rescale = given.rows.bins, given.rescale
    of_bins = () if bins is None else two_bins(bins)
    branches = given.hidden.contiguous(), given.branch.contiguous()
    norm = norm_of(given.norm) if bins is None else ()
    scores = fp32(given.logits), *of_bins, rescale.mode, rescale.score_scale
    return *branches, fp32_rows(given.gate), *scores, *norm


def norm_of(norm: RowNorm | None) -> tuple:
    """Kind, weight, bias and eps of a branch's norm as the kernels read them."""
    if norm is None:
        return "none", None, None, 0.0
    return norm.kind, *(None if t is None else fp32(t) for t in (norm.weight, norm.bias)), norm.eps
