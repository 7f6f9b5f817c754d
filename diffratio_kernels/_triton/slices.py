"""Sums over the rows of each sample, or of each group, without atomics: programs leave the sums of
ROWS_PER_SLICE tokens, and these are added in a second step, always in one order."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..types import PackedRows
from .launch import ROWS_PER_SLICE, accumulator, cdiv, launch, row_block


def groups_of(rows: PackedRows) -> Tensor | None:
    """[B, N] as kernels read them."""
    return None if rows.groups is None else rows.groups.contiguous()


@triton.jit
def owner_of(groups_ptr, index, tokens):
    """Whose modulation row `index` of x has: its sample's or its group's."""
    return index // tokens if groups_ptr is None else tl.load(groups_ptr + index)


@triton.jit
def token_at(order_ptr, place):
    """The row of x at a place: they follow each other, or stand by group."""
    return place if order_ptr is None else tl.load(order_ptr + place)


@triton.jit
def group_of(order_ptr, groups_ptr, place, sample):
    """Whose modulation the token at a place has."""
    return sample if order_ptr is None else tl.load(groups_ptr + tl.load(order_ptr + place))


@triton.jit
def vector_of(vectors_ptr, group, stride, d, D: tl.constexpr):
    """The row of the modulation of a sample or group. It is read again for each of their rows: out of the
    cache, which costs less than registers that hold it."""
    return tl.load(vectors_ptr + group * stride + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def slot(order_ptr, part, sample, group):
    """Where a slice leaves its sums: from run to run of tokens of one group in one slice, either the slice or
    the group rises, so that their sum is no other run's."""
    return sample * tl.num_programs(0) + part if order_ptr is None else part + group


@triton.jit
def leave(first_ptr, second_ptr, place, first, second, d, D: tl.constexpr):
    """The sums [D] of a run at its place; no second ones without a pointer."""
    tl.store(first_ptr + place * D + d, first, mask=d < D)
    if second_ptr is not None:
        tl.store(second_ptr + place * D + d, second, mask=d < D)


@triton.jit
def _group_sums(
    partial_ptr, bounds_ptr, sums_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    begin = tl.load(bounds_ptr + group)
    end = tl.load(bounds_ptr + group + 1)
    total = tl.zeros((BLOCK_D,), tl.float32)
    if end > begin:
        for part in range(begin // ROWS, (end - 1) // ROWS + 1):
            total += tl.load(partial_ptr + (part + group) * D + d, mask=d < D, other=0.0)
    tl.store(sums_ptr + group * D + d, total, mask=d < D)


@dataclass(slots=True)
class Slices:
    """How tokens are dealt out to the programs of a backward kernel."""

    grid: tuple[int, int]
    """Slices of a sample, samples; with groups slices of all tokens, 1."""
    tokens: int
    """N; with groups B*N."""
    count: int
    """B*N."""
    owners: int
    """Rows of the modulation: B or G."""
    groups: Tensor | None = None
    """[B*N] int64."""
    order: Tensor | None = None
    """[B*N] int64: the tokens by group."""
    bounds: Tensor | None = None
    """[G+1] int64: the places at which each group begins and ends."""

    @staticmethod
    def of(rows: PackedRows, owners: int) -> "Slices":
        if rows.groups is None:
            grid = cdiv(rows.tokens, ROWS_PER_SLICE), owners
            return Slices(grid, rows.tokens, owners * rows.tokens, owners)
        groups = groups_of(rows).flatten()
        by_group, order = groups.sort(stable=True)
        bounds = torch.searchsorted(by_group, torch.arange(owners + 1, device=groups.device))
        count = groups.shape[0]
        return Slices((cdiv(count, ROWS_PER_SLICE), 1), count, count, owners, groups, order, bounds)

    def partial(self, width: int, like: Tensor) -> Tensor:
        """An empty fp32 tensor for the sums of every slice."""
        if self.order is None:
            return accumulator(self.owners, self.grid[0], width, like=like)
        return accumulator(self.grid[0] + self.owners, width, like=like)

    def total(self, partial: Tensor) -> Tensor:
        """[B or G, D]: the sums of all slices."""
        if self.order is None:
            return partial.sum(1)
        width = partial.shape[1]
        sums = accumulator(self.owners, width, like=partial)
        launch(
            _group_sums, (self.owners,), partial, self.bounds, sums, ROWS=ROWS_PER_SLICE, **row_block(width)
        )
        return sums
