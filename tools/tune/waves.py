"""The tile-and-wave model of a product: how long [rows, inner] x [inner, columns] takes on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from diffratio.plan import DEVICES, Device

MULTIPROCESSORS = {DEVICES["a100"].name: 108, DEVICES["h100"].name: 132, DEVICES["h200"].name: 132}
"""How many tiles of a product run at a time."""

OPERANDS_IN_SHARED_MEMORY = (DEVICES["h100"].name, DEVICES["h200"].name)
"""Those of sm_90: its matrix units read both operands from shared memory, sm_80's from registers."""
FLOPS_PER_BYTE = 32
"""Of one multiprocessor of sm_90: 4096 FLOPs and 128 bytes of shared memory in a cycle."""
ROWS_AT_ONCE = 64
"""Rows of a tile that one instruction of sm_90 multiplies with all of its columns."""

SPLITS = (1, 2, 3, 4)
"""Into how many parts the inner dimension may be cut; their sums are fp32, written and read once."""


@dataclass(frozen=True)
class Tile:
    """A tile of the result, and the share of the peak that multiprocessors reach on it while all are busy."""

    rows: int
    columns: int
    efficiency: float


TILES = (
    Tile(128, 256, 0.95),
    Tile(256, 128, 0.95),
    Tile(128, 192, 0.95),
    Tile(128, 128, 0.92),
    Tile(128, 64, 0.86),
    Tile(64, 128, 0.86),
    Tile(64, 64, 0.70),
)


def shared_memory_share(tile: Tile, device: Device) -> float:
    """The most of the peak that shared memory leaves to a tile: along the inner dimension every operand is
    written once, its rows are read once and its columns again for each 64 rows."""
    if device.name not in OPERANDS_IN_SHARED_MEMORY:
        return 1.0
    reads = tile.rows + tile.rows / ROWS_AT_ONCE * tile.columns
    moved = device.itemsize * (tile.rows + tile.columns + reads)
    return min(1.0, 2 * tile.rows * tile.columns / (moved * FLOPS_PER_BYTE))


@dataclass(frozen=True)
class Choice:
    """A product with one tile. splits: parts of the inner dimension summed afterwards. waves: tiles that the
    busiest multiprocessor computes. efficiency: share of the device's peak that the whole product reaches.
    seconds: launches included.
    """

    tile: Tile
    splits: int
    waves: int
    efficiency: float
    seconds: float


def tile_seconds(rows: int, columns: int, inner: int, device: Device, tile: Tile, splits: int = 1) -> Choice:
    """The product with this tile and split: its waves, never faster than its bytes, and its launches."""
    for name, value in {"rows": rows, "columns": columns, "inner": inner, "splits": splits}.items():
        if value < 1:
            raise ValueError(f"{name}: {value} must be positive")
    waves = ceil(
        ceil(rows / tile.rows) * ceil(columns / tile.columns) * splits / MULTIPROCESSORS[device.name]
    )
    per_tile = 2 * tile.rows * tile.columns * ceil(inner / splits)
    share = min(tile.efficiency, shared_memory_share(tile, device))
    computing = waves * per_tile * MULTIPROCESSORS[device.name] / (share * device.peak_flops)
    moved = device.itemsize * (rows * inner + inner * columns + rows * columns)
    seconds = max(computing, moved / device.bandwidth) + device.launch_seconds
    if splits > 1:
        sums = splits * rows * columns * 4
        seconds += 2 * sums / device.bandwidth + device.launch_seconds
    reached = 2 * rows * columns * inner / seconds / device.peak_flops
    return Choice(tile, splits, waves, reached, seconds)


def best_tile(rows: int, columns: int, inner: int, device: Device, tiles: tuple[Tile, ...] = TILES) -> Choice:
    """The fastest of `tiles` and `SPLITS` for this product; of equals the first, so the larger tile."""
    choices = (
        tile_seconds(rows, columns, inner, device, tile, splits) for splits in SPLITS for tile in tiles
    )
    return min(choices, key=lambda choice: choice.seconds)


def product_seconds(rows: int, columns: int, inner: int, device: Device) -> float:
    """Predicted seconds of [rows, inner] x [inner, columns], its bytes and its launch included."""
    return best_tile(rows, columns, inner, device).seconds
