"""Packed rows of two bins: T large rows first, then the S small ones, which are a prefix of each sample's."""

import triton
import triton.language as tl
from torch import Tensor

from ..types import Bins


@triton.jit
def sample_of(cu_seqlens_ptr, t, samples, STEPS: tl.constexpr):
    """The sample of packed row t; 2**STEPS >= samples."""
    low, high = 0, samples - 1
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        beyond = tl.load(cu_seqlens_ptr + middle + 1) <= t
        low, high = tl.where(beyond, middle + 1, low), tl.where(beyond, high, middle)
    return low


@triton.jit
def small_row(cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, t, rows):
    """Whether packed row t of a sample is in its small set, and where that row is among all T + S."""
    first_small = tl.load(cu_seqlens_small_ptr + sample)
    place = t - tl.load(cu_seqlens_large_ptr + sample)
    in_small = place < tl.load(cu_seqlens_small_ptr + sample + 1) - first_small
    return in_small, (first_small + place).to(tl.int64) + rows


@triton.jit
def columns_if(row, columns):
    """`row & columns` of a condition on a row and one on its columns, which compiles to the same.

    In the interpreter of Triton 3.9 that has the dtype of what `row` compared, and is no mask.
    """
    return (tl.where(row, 1, 0) > tl.zeros(columns.shape, tl.int32)) & columns


def contiguous(bins: Bins) -> tuple[Tensor, Tensor, Tensor]:
    """weight_large, cu_seqlens_large and cu_seqlens_small as kernels read them."""
    return (
        bins.weight_large.contiguous(),
        bins.cu_seqlens_large.contiguous(),
        bins.cu_seqlens_small.contiguous(),
    )
