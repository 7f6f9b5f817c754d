"""The inverse of an index: which packed row each row of x became."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch


@triton.jit
def _row_map(index_ptr, row_map_ptr, count, BLOCK: tl.constexpr):
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + t, mask=t < count, other=0)
    tl.store(row_map_ptr + index, t, mask=t < count)


def row_map_of(index: Tensor, rows: int) -> Tensor:
    """[rows] int32: which packed row each row of x became, -1 where none; index [T] in any order."""
    row_map = torch.full((rows,), -1, dtype=torch.int32, device=index.device)
    count = index.shape[0]
    launch(_row_map, (triton.cdiv(count, 1024),), index.contiguous(), row_map, count, BLOCK=1024)
    return row_map
