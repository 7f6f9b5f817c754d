"""What products with an epilogue share: the loop over the inner dimension, and what is done to its result."""

import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .launch import cdiv


@triton.jit
def grouped_tile(rows, F: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Rows [BLOCK_M, 1] in 64 bits and the first column of a program; GROUP row tiles share column tiles
    while these are in cache."""
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    in_group = GROUP * tl.cdiv(F, BLOCK_N)
    first = program // in_group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    row = (first + program % in_group % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    return row.to(tl.int64)[:, None], program % in_group // height * BLOCK_N


@triton.jit
def product(
    x_ptr, weight_ptr, row, column, rows,
    K: tl.constexpr, F: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_F: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x [T, K] times weight [K, F] of any strides, in fp32: rows `row` [BLOCK_M, 1], BLOCK_N columns."""
    f = column + tl.arange(0, BLOCK_N)[None, :]
    k = tl.arange(0, BLOCK_K)
    x_ptr += row * K + k[None, :]
    weight_ptr += k[:, None] * STRIDE_K + f * STRIDE_F
    total = tl.zeros((row.shape[0], BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        x = tl.load(x_ptr, mask=(row < rows) & (start + k[None, :] < K), other=0.0)
        weight = tl.load(weight_ptr, mask=(start + k[:, None] < K) & (f < F), other=0.0)
        total = tl.dot(x, weight, total, input_precision="ieee")
        x_ptr += BLOCK_K
        weight_ptr += BLOCK_K * STRIDE_K
    return total


@triton.jit
def halves(tile):
    """The left and the right half of a tile's columns: finished one after the other they need half the
    registers."""
    M: tl.constexpr = tile.shape[0]
    N: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def gated(total, bias_ptr, gate_ptr, at, f, inside, F: tl.constexpr):
    """gate * (total + bias) at columns `f` [1, N], the gate of row t at `at` [M, 1]."""
    if bias_ptr is not None:
        total += tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    if gate_ptr is not None:
        total *= tl.load(gate_ptr + at + f, mask=inside, other=0.0).to(tl.float32)
    return total


def product_options(kernel: str, rows: Tensor, weight: Tensor) -> tuple[tuple[int], dict]:
    """Grid and constants of a kernel that multiplies rows [T, K] with weight [K, F] of any strides."""
    inner, width = weight.shape
    tile = tiles.product_tiles(kernel, rows, width)
    programs = cdiv(rows.shape[0], tile["BLOCK_M"]) * cdiv(width, tile["BLOCK_N"])
    return (programs,), {
        "K": inner, "F": width, "STRIDE_K": weight.stride(0), "STRIDE_F": weight.stride(1), **tile,
    }  # fmt: skip
