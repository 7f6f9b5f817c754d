"""Tiles per kernel, architecture and shape, from the table in tiles.json: nothing is tuned at run time. It
also holds how fast kernels are, as a part of a library's time (_choice.py).

`source` of an entry: "predicted" (by the tile-and-wave model and the ahead-of-time report: no spills, blocks
on a multiprocessor) or "measured", then `on` names GPU, torch, Triton, commit and date; tools/tune/tune.py
writes it.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from math import log
from pathlib import Path

import torch
from torch import Tensor

from . import capability

TABLE = Path(__file__).with_name("tiles.json")


@dataclass(frozen=True)
class ProductTile:
    """How a product of [rows, inner] with [inner, columns] is computed.

    tile: blocks of rows, columns and the inner dimension, row tiles in a group, warps, stages. of_library:
    its seconds as a part of those of the library's product and the row kernel after it.
    """

    kernel: str
    architecture: int
    rows: int
    columns: int
    inner: int
    tile: tuple[int, ...]
    of_library: float
    source: str
    on: str = ""

    def distance(self, rows: int, columns: int, inner: int) -> tuple[float, float]:
        """From another shape: first the weight counts, then the rows."""
        weight = abs(log(self.columns / columns)) + abs(log(self.inner / inner))
        return weight, abs(log(self.rows / rows))


@dataclass(frozen=True)
class AttentionRatio:
    """How fast our attention is at one shape, beside every library that was measured with it.

    kind: of _choice.KINDS. architecture: the compute capability, 90 for 9.0. queries, keys: of the longest
    sample; with two bins rows of the large and of the small set. of: library -> our seconds as a part of its
    own.
    """

    kind: str
    architecture: int
    queries: int
    keys: int
    head_dim: int
    of: dict[str, float]
    source: str
    on: str = ""


_TABLE = json.loads(TABLE.read_text())
PRODUCT_TILES = [ProductTile(**entry | {"tile": tuple(entry["tile"])}) for entry in _TABLE["products"]]
ATTENTION_RATIOS = [AttentionRatio(**entry) for entry in _TABLE["ratios"]]
# kernel: {architecture: {held width of a head: (queries, keys, warps, stages)}}
ATTENTION_TILES: dict[str, dict[int, dict[int, tuple[int, ...]]]] = {}
for _entry in _TABLE["attention"]:
    _widths = ATTENTION_TILES.setdefault(_entry["kernel"], {}).setdefault(_entry["architecture"], {})
    _widths[_entry["held"]] = tuple(_entry["tile"])
# fp32 products are exact, not TF32: no matrix units, so small tiles. Attention spills even so; "auto" leaves
# it to torch.
ATTENTION_FP32 = {128: (32, 32, 4, 1), 256: (16, 16, 4, 1)}
PRODUCT_FP32 = (32, 32, 32, 8, 4, 1)
FEW_PROGRAMS = 132
"""Fewer leave multiprocessors of an H100 or H200 idle."""
LARGEST_HEAD_DIM = 256
LARGEST_HEAD_DIM_OF_TWO_BINS = 128  # the backward pass holds incoming gradients of both in registers

assumed_architecture = 80
"""Compute capability taken for tensors that are not on a GPU (interpreter, ahead-of-time compilation)."""


def architecture(device: torch.device) -> int:
    """Which table a device takes."""
    if device.type != "cuda":
        return assumed_architecture
    return architecture_of(capability(device) // 10)


def architecture_of(major: int) -> int:
    """Which table a compute capability takes: 90 for sm_90 and sm_100, 80 for the others (less shared
    memory)."""
    return 90 if major in (9, 10) else 80


def attention_tile(
    kernel: str,
    architecture: int,
    held: int,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    sequences: int = 1,
) -> tuple[int, ...]:
    """Blocks of queries and keys, warps and stages for heads that are held as `held` columns.

    128 queries by 8 warps are halved where 64 of them pad the longest of `sequences` (heads times samples)
    by a tenth less, or fill multiprocessors that would idle; and in cross-attention, whose registers leave
    room for one block of 8 warps. Keys are not: their blocks decide the order of sums, and no sample's bits
    may depend on how long its neighbours are.
    """
    table = ATTENTION_TILES[kernel][architecture]
    queries, keys, warps, stages = table[min(width for width in table if width >= held)]
    if max_seqlen_q is not None and (queries, warps) == (128, 8) and held <= 128:
        whole, half = -(-max_seqlen_q // 128), -(-max_seqlen_q // 64)
        padded, few = 2 * whole > 1.1 * half, sequences * whole < FEW_PROGRAMS
        if padded or few or max_seqlen_k != max_seqlen_q:
            return 64, keys, 4, stages
    return queries, keys, warps, stages


def attention_tiles(kernel: str, like: Tensor, held: int, *longest: int) -> dict:
    """`attention_tile` as the options of a kernel on the device of `like`."""
    if like.dtype == torch.float32:
        tile = next(ATTENTION_FP32[width] for width in ATTENTION_FP32 if width >= held)
    else:
        tile = attention_tile(kernel, architecture(like.device), held, *longest)
    return dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), tile, strict=True))


def product_tiles(kernel: str, rows: Tensor, columns: int) -> dict:
    """Blocks of rows, columns and the inner dimension, row tiles in a group, warps and stages for the product
    of rows [T, K] with a weight of that many columns."""
    fp32 = rows.dtype == torch.float32
    tile = PRODUCT_FP32 if fp32 else nearest(kernel, architecture(rows.device), columns, *rows.shape).tile
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP", "num_warps", "num_stages")
    return dict(zip(names, tile, strict=True))


@lru_cache(maxsize=4096)
def nearest(kernel: str, architecture: int, columns: int, rows: int, inner: int) -> ProductTile:
    """The entry of the table for the shape most like this one."""
    entries = [e for e in PRODUCT_TILES if (e.kernel, e.architecture) == (kernel, architecture)]
    return min(entries, key=lambda entry: entry.distance(max(rows, 1), columns, inner))
