"""Tiles per kernel, architecture and shape, from the table in tiles.json: nothing is tuned at run time.

`source` of an entry: "predicted" (by the tile-and-wave model and the ahead-of-time report: no spills, blocks
on a multiprocessor) or "measured on" which GPU, when, at which commit; tools/tune/tune.py writes it.
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

    def distance(self, rows: int, columns: int, inner: int) -> tuple[float, float]:
        """From another shape: first the weight counts, then the rows."""
        weight = abs(log(self.columns / columns)) + abs(log(self.inner / inner))
        return weight, abs(log(self.rows / rows))


_TABLE = json.loads(TABLE.read_text())
PRODUCT_TILES = [ProductTile(**entry | {"tile": tuple(entry["tile"])}) for entry in _TABLE["products"]]
# kernel: {architecture: {held width of a head: (queries, keys, warps, stages)}}
ATTENTION_TILES: dict[str, dict[int, dict[int, tuple[int, ...]]]] = {}
for _entry in _TABLE["attention"]:
    _widths = ATTENTION_TILES.setdefault(_entry["kernel"], {}).setdefault(_entry["architecture"], {})
    _widths[_entry["held"]] = tuple(_entry["tile"])
# fp32 products are exact, not TF32: no matrix units, so small tiles. Attention spills even so; "auto" leaves
# it to torch.
ATTENTION_FP32 = {128: (32, 32, 4, 1), 256: (16, 16, 4, 1)}
PRODUCT_FP32 = (32, 32, 32, 8, 4, 1)
LARGEST_HEAD_DIM = 256
LARGEST_HEAD_DIM_OF_TWO_BINS = 128  # the backward pass holds incoming gradients of both in registers

assumed_architecture = 80
"""Compute capability taken for tensors that are not on a GPU (interpreter, ahead-of-time compilation)."""


def architecture(device: torch.device) -> int:
    """Which table a device takes."""
    if device.type != "cuda":
        return assumed_architecture
    return architecture_of(capability(device.index)[0])


def architecture_of(major: int) -> int:
    """Which table a compute capability takes: 90 for sm_90 and sm_100, 80 for the others (less shared
    memory)."""
    return 90 if major in (9, 10) else 80


def attention_tiles(kernel: str, like: Tensor, held: int) -> dict:
    """Blocks of queries and keys, warps and stages for heads that are held as `held` columns."""
    fp32 = like.dtype == torch.float32
    table = ATTENTION_FP32 if fp32 else ATTENTION_TILES[kernel][architecture(like.device)]
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    return dict(zip(names, table[min(width for width in table if width >= held)], strict=True))


def product_tiles(kernel: str, rows: Tensor, columns: int) -> dict:
    """Blocks of rows, columns and the inner dimension, row tiles in a group, warps and stages for the product
    of rows [T, K] with a weight of that many columns."""
    fp32 = rows.dtype == torch.float32
    tile = PRODUCT_FP32 if fp32 else nearest(kernel, architecture(rows.device), columns, *rows.shape).tile
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP", "num_warps", "num_stages")
    return dict(zip(names, tile, strict=True))


def beats_library(kernel: str, device: torch.device, columns: int, rows: int, inner: int) -> bool:
    """Whether the table says that one kernel is faster than the library's product and a row kernel."""
    return nearest(kernel, architecture(device), columns, rows, inner).of_library < 1


@lru_cache(maxsize=4096)
def nearest(kernel: str, architecture: int, columns: int, rows: int, inner: int) -> ProductTile:
    """The entry of the table for the shape most like this one."""
    entries = [e for e in PRODUCT_TILES if (e.kernel, e.architecture) == (kernel, architecture)]
    return min(entries, key=lambda entry: entry.distance(max(rows, 1), columns, inner))
