"""Sums over the rows of each sample, or of each group, without atomics: programs leave the sums of
ROWS_PER_SLICE tokens, and these are added in a second step, always in one order."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..types import PackedRows
from .launch import ROWS_PER_SLICE, accumulator, cdiv, launch, row_block
from .two_bin_rows import columns_if


def groups_of(rows: PackedRows) -> Tensor | None:
    """[B, N] as kernels read them."""
    return None if rows.groups is None else rows.groups.contiguous()


@triton.jit
def sample_of(index, tokens):
    """The sample of each row of x [B N, D], in 64 bits. A division of 64 bits costs several of 32, and x has
    fewer than 2^31 rows."""
    return (index.to(tl.int32) // tokens).to(tl.int64)


@triton.jit
def owner_of(groups_ptr, index, tokens):
    """Whose modulation row `index` of x has: its sample's or its group's."""
    return sample_of(index, tokens) if groups_ptr is None else tl.load(groups_ptr + index)


@triton.jit
def slice_of(row_map_ptr, order_ptr, groups_ptr, begin, end, ROWS: tl.constexpr):
    """Of ROWS places from `begin`: row of x, packed row and group. Rows follow each other, or stand by group.
    They are loaded all at once: one after the other, each would keep its row waiting."""
    place = begin + tl.arange(0, ROWS)
    token = place if order_ptr is None else tl.load(order_ptr + place, mask=place < end, other=0)
    packed = tl.load(row_map_ptr + token, mask=place < end, other=-1)
    group = packed if order_ptr is None else tl.load(groups_ptr + token, mask=place < end, other=-1)
    return token.to(tl.int32), packed, group.to(tl.int32)


@triton.jit
def at_place(values, i):
    """Number i of `values`, none of which is below -1; -1 beyond them."""
    return tl.sum(tl.where(tl.arange(0, values.shape[0]) == i, values + 1, 0), axis=0) - 1


@triton.jit
def token_at(order_ptr, tokens, place, begin):
    """The row of x at a place of the slice from `begin`."""
    return place if order_ptr is None else at_place(tokens, place - begin)


@triton.jit
def start_of(t, D: tl.constexpr):
    """Where row t begins, in 64 bits. In the interpreter a t that a loop counts is no tensor."""
    return t * tl.full((), D, tl.int64)


@triton.jit
def row_at(rows_ptr, t, d, D: tl.constexpr):
    """Row t as it is stored, and zeros beyond D."""
    return tl.load(rows_ptr + start_of(t, D) + d, mask=d < D, other=0.0)


@triton.jit
def row_or_zeros(rows_ptr, t, d, D: tl.constexpr):
    """The same for a t below 0 too, which is no row."""
    return tl.load(rows_ptr + start_of(t, D) + d, mask=columns_if(t >= 0, d < D), other=0.0)


@triton.jit
def put_row(rows_ptr, t, row, d, D: tl.constexpr):
    """Row t, in the dtype of the others."""
    tl.store(rows_ptr + start_of(t, D) + d, row.to(rows_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def vector_of(vectors_ptr, group, stride, d, D: tl.constexpr):
    """The row of the modulation of a sample or group. It is read again for each of their rows: out of the
    cache, which costs less than registers that hold it."""
    return tl.load(vectors_ptr + group.to(tl.int64) * stride + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def slot(order_ptr, part, sample, group):
    """Where a slice leaves its sums: from run to run of tokens of one group in one slice, either the slice or
    the group rises, so that their sum is no other run's."""
    return sample * tl.num_programs(0) + part if order_ptr is None else part + group


@triton.jit
def leave(first_ptr, second_ptr, place, first, second, d, D: tl.constexpr):
    """The sums [D] of a run at its place; no second ones without a pointer."""
    at = place.to(tl.int64) * D + d
    tl.store(first_ptr + at, first, mask=d < D)
    if second_ptr is not None:
        tl.store(second_ptr + at, second, mask=d < D)


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
            _group_sums, (self.owners,), partial, self.bounds, sums,
            ROWS=ROWS_PER_SLICE, **row_block(width, 8),
        )  # fmt: skip
        return sums
