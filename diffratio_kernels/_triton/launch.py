"""The one place where Triton kernels are launched, and what launchers share."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..types import PackedRows
from . import stand_ins

ROWS_PER_SLICE = 32
"""Tokens of a sample whose rows one program adds up in a backward pass. It depends on nothing, so that a
sample's bits do not depend on its neighbours; the slices are added in a second step, always in one order."""


FP_FUSION = {"enable_fp_fusion": True}
"""Option of every kernel: a * b + c is one FFMA, with one rounding, as in the CUDA C++ kernels. Triton does
that unasked up to 3.9, which warns, and no longer from 3.10 on."""

FEW_REGISTERS = {"maxnreg": 64}
"""Option of backward kernels of rows: two blocks of 512 threads in a multiprocessor's registers, not one."""


def launch(kernel: triton.JITFunction, grid: tuple[int, ...], *args, **options) -> None:
    """Run a kernel on the device of its first argument, in the current stream. An empty grid is no launch."""
    if 0 in grid:
        return
    options |= FP_FUSION
    device = args[0].device
    if device.type in stand_ins:
        stand_ins[device.type](kernel, grid, args, options)
        return
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[grid](*args, **options)
        return
    with torch.cuda.device(device):
        kernel[grid](*args, **options)


# Triton's own two work in kernels as well, and take microseconds of the host.
def cdiv(count: int, part: int) -> int:
    """How many parts hold so many."""
    return -(-count // part)


def next_power_of_2(number: int) -> int:
    """Of a positive number."""
    return 1 << (number - 1).bit_length()


@lru_cache(maxsize=1024)
def row_block(width: int, held: int = 16) -> dict:
    """Options of a kernel that holds a whole row of `width` elements: its block and warps, to be read only.

    held: elements of a thread, until there are 4096 in a row. With 16 fewer threads idle where the row ends
    before its block; a backward pass has registers for 8.
    """
    block = next_power_of_2(width)
    return {"D": width, "BLOCK_D": block, "num_warps": min(max(block // (32 * held), 1), 128 // held)}


def unit_rows(t: Tensor) -> Tensor:
    """`t` [..., D] with adjacent elements in its last dimension: kernels take the other strides."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def accumulator(*shape: int, like: Tensor) -> Tensor:
    """An empty fp32 tensor on the device of `like`."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@triton.jit
def _row_map(index_ptr, row_map_ptr, count, BLOCK: tl.constexpr):
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + t, mask=t < count, other=0)
    tl.store(row_map_ptr + index, t, mask=t < count)


def row_map_of(rows: PackedRows, count: int) -> Tensor:
    """The row map of `count` rows of x, made where it is not there yet; the index may have any order."""
    if rows.row_map is not None:
        return rows.row_map
    row_map = torch.full((count,), -1, dtype=torch.int32, device=rows.index.device)
    kept = rows.index.shape[0]
    launch(_row_map, (cdiv(kept, 1024),), rows.index.contiguous(), row_map, kept, BLOCK=1024)
    return row_map
