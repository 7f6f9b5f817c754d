"""The tiles to choose from, what they cost in registers and shared memory, and their predicted seconds."""

from __future__ import annotations

from functools import cache

import torch

from diffratio.plan import Device
from diffratio_kernels._triton.tiles import ProductTile

from ..aot.compile import compile_kernel
from ..aot.record import record
from ..aot.rules import NONE_OF
from .subjects import WAYS, Subject, draw, tile_of
from .waves import TILES, Tile, product_seconds, tile_seconds

PRODUCTS = {
    80: (
        (128, 128, 32, 8, 8, 4), (128, 256, 32, 8, 8, 3), (128, 64, 32, 8, 8, 3), (128, 128, 32, 8, 4, 4),
        (128, 64, 32, 8, 4, 4), (64, 128, 32, 8, 4, 4), (64, 64, 32, 8, 4, 4),
    ),
    90: (
        (128, 128, 64, 8, 8, 3), (128, 256, 64, 8, 8, 3), (256, 128, 64, 8, 8, 3), (128, 64, 64, 8, 8, 3),
        (128, 64, 64, 8, 4, 4), (64, 128, 64, 8, 4, 4), (64, 64, 64, 8, 4, 4),
    ),
}  # fmt: skip
ATTENTION = {
    80: ((64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 4, 3), (128, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3)),
    90: (
        (128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2), (128, 64, 4, 3), (128, 128, 8, 3), (128, 128, 8, 2),
        (64, 128, 4, 2),
    ),
}  # fmt: skip
# For shapes of the interpreter: of attention, and of products.
SMALL = {
    True: ((16, 16, 4, 1), (32, 16, 4, 1)),
    False: ((32, 16, 16, 2, 4, 1), (16, 32, 32, 8, 4, 1)),
}
ROUGH = 1435
"""Rows for which tiles are compiled: like most counts, no multiple of 16."""
OF_LIBRARY = 0.9
"""Share of the library's speed that Triton's loop reaches on the same tile, assumed."""
EPILOGUE = {"linear_gate_residual": 1, "linear_scatter": 1, "linear_gelu": 0, "linear_gelu_backward": 2}
"""Numbers that an epilogue reads or writes for each number of the product, beside the result itself."""
LAUNCHES_BEFORE = {"linear_scatter": 1}
"""Kernels before the product: a copy of the rows that are not kept, whose bytes cost the library the same."""
ROW_KERNEL = {"linear_gate_residual": 3, "linear_scatter": 3, "linear_gelu": 0, "linear_gelu_backward": 5}
"""Numbers that the kernels after the library's product read and write for each of its numbers."""


def candidates(subject: Subject, architecture: int) -> tuple[tuple[int, ...], ...]:
    return (ATTENTION if subject.is_attention else PRODUCTS)[architecture]


@cache
def costs(kernel: str, columns: int, inner: int, architecture: int, tile: tuple[int, ...]) -> dict:
    """The figures of `make kernels` for one tile, in bf16."""
    subject = Subject(kernel, ROUGH, columns, inner)
    tensors = draw(subject, torch.bfloat16, "meta")
    with tile_of(subject, architecture, tile):
        spec = record(architecture, WAYS[kernel].ours, tensors)[-1]
    return compile_kernel(spec, architecture)


def compiles(subject: Subject, architecture: int, tile: tuple[int, ...]) -> bool:
    """Whether the tile fits into a multiprocessor's registers and shared memory, and its code is right."""
    found = costs(subject.kernel, subject.columns, subject.inner, architecture, tile)
    return found["occupancy"] > 0 and not any(found[figure] for figure in NONE_OF)


def seconds(subject: Subject, architecture: int, tile: tuple[int, ...], device: Device) -> float:
    """Predicted from its waves: the epilogue is hidden where a multiprocessor holds a second block."""
    rows, columns, inner = subject.rows, subject.columns, subject.inner
    share = next(t.efficiency for t in TILES if (t.rows, t.columns) == tile[:2])
    shape = Tile(tile[0], tile[1], OF_LIBRARY * share)
    before = LAUNCHES_BEFORE.get(subject.kernel, 0) * device.launch_seconds
    computing = before + tile_seconds(rows, columns, inner, device, shape).seconds
    found = costs(subject.kernel, columns, inner, architecture, tile)
    blocks = found["occupancy"] * 2048 / found["threads"]
    moved = device.itemsize * rows * columns * (1 + EPILOGUE[subject.kernel])
    operands = device.itemsize * inner * (rows + columns)
    if blocks < 2:
        return computing + moved / device.bandwidth
    return max(computing, before + (moved + operands) / device.bandwidth + device.launch_seconds)


def library_seconds(subject: Subject, device: Device) -> float:
    """Predicted: the library's product, and the row kernel after it."""
    product = product_seconds(subject.rows, subject.columns, subject.inner, device)
    moved = device.itemsize * subject.rows * subject.columns * ROW_KERNEL[subject.kernel]
    return product + (moved / device.bandwidth + device.launch_seconds if moved else 0)


def predicted(subject: Subject, architecture: int, device: Device) -> ProductTile:
    """The entry of the table with the candidate that is predicted to be the fastest."""
    able = [tile for tile in candidates(subject, architecture) if compiles(subject, architecture, tile)]
    times = {tile: seconds(subject, architecture, tile, device) for tile in able}
    best = min(times, key=times.__getitem__)
    ratio = round(times[best] / library_seconds(subject, device), 3)
    return ProductTile(
        **vars(subject), architecture=architecture, tile=best, of_library=ratio, source="predicted"
    )
