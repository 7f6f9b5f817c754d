"""The demo's picture: samples of both models, what the sparse one has learned to keep, and where it looks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..data.digits import CLASSES, SIZE
from ..plots.style import INK, KEPT, MUTED, bare
from .report import note, table_rows, titles

_COLUMNS = 10  # samples of each class that the picture shows
_GAP = 1  # pixels between two samples, in sample pixels


def montage(images: Tensor, columns: int) -> np.ndarray:
    """Return float ``[rows * 9 - 1, columns * 9 - 1]`` in [0, 1]: digits dark on white, NaN in the gaps.

    ``images`` is ``[10 * per_class, 1, 8, 8]`` in [-1, 1], ordered by class; each class becomes one row.
    """
    pitch = SIZE + _GAP
    by_class = images.reshape(CLASSES, -1, SIZE, SIZE)[:, :columns]
    columns = by_class.shape[1]
    canvas = np.full((CLASSES * pitch - _GAP, columns * pitch - _GAP), np.nan)
    for row in range(CLASSES):
        for column in range(columns):
            top, left = row * pitch, column * pitch
            canvas[top : top + SIZE, left : left + SIZE] = (1 - by_class[row, column].numpy()) / 2
    return canvas


def compose(
    dense: Tensor, sparse: Tensor, kept: Tensor, timesteps: Sequence[int], report: dict[str, Any]
) -> Figure:
    """Return the figure.

    ``dense`` and ``sparse`` are images ``[10 * per_class, 1, 8, 8]`` ordered by class; ``kept`` is
    ``[len(timesteps), L, 8, 8]``, the share of samples in [0, 1] that kept each token. All figures come from
    ``report``, as in ``demo.json``.
    """
    if kept.shape[0] != len(timesteps):
        raise ValueError(f"kept has {kept.shape[0]} timesteps but timesteps lists {len(timesteps)}")
    layers = len(report["kept"]["tenths"])
    if kept.shape[1] != layers:
        raise ValueError(f"kept has {kept.shape[1]} layers but the report's table {layers}")
    figure = Figure(figsize=(11.0, 14.4), dpi=130, facecolor="white")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(5.6, 5.0, 2.8))
    for axes, images, title in zip(top.subplots(1, 2), (dense, sparse), titles(report), strict=True):
        _samples(axes, images, title)
    top.subplots_adjust(left=0.06, right=0.97, top=0.92, bottom=0.01, wspace=0.08)
    amount, place = middle.subfigures(1, 2, width_ratios=(1, 2.6))
    _region_map(amount, report["kept"]["tenths"])
    _router_maps(place, kept, timesteps)
    _table(bottom, table_rows(report))
    bottom.text(0.06, 0.05, note(report), fontsize=9, color=MUTED)
    return figure


def _samples(axes, images: Tensor, title: str) -> None:
    bare(axes)
    axes.imshow(montage(images, _COLUMNS), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=12, color=INK, pad=8)
    pitch = SIZE + _GAP
    axes.set_yticks([row * pitch + SIZE / 2 - 0.5 for row in range(CLASSES)], map(str, range(CLASSES)))
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)


def _region_map(figure, tenths: list[list[int]]) -> None:
    """Kept tokens in % of every block and timestep region, the noisiest on the left."""
    layers, regions = len(tenths), len(tenths[0])
    figure.suptitle("How much each block keeps (%)", fontsize=12, color=INK, y=0.97)
    axes = figure.add_axes((0.2, 0.06, 0.76, 0.81))
    bare(axes)
    shares = np.array(tenths)[:, ::-1] * 10
    axes.imshow(shares, cmap=KEPT, vmin=0, vmax=100, aspect="auto")
    for (layer, column), share in np.ndenumerate(shares):
        colour = "white" if share < 60 else INK
        axes.text(column, layer, str(share), ha="center", va="center", fontsize=10, color=colour)
    edges = [str(round(1000 * (regions - column) / regions)) for column in range(regions + 1)]
    axes.set_xticks([column - 0.5 for column in range(regions + 1)], edges)
    axes.set_xlabel("timestep", fontsize=9, color=MUTED)
    axes.set_yticks(range(layers), [f"block {layer}" for layer in range(layers)])
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)


def _router_maps(figure, kept: Tensor, timesteps: Sequence[int]) -> None:
    """Share of samples that keep each token, blocks downwards as in the table beside it."""
    figure.suptitle("Which tokens: share of samples that keep each of them", fontsize=12, color=INK, y=0.97)
    layers = kept.shape[1]
    grid = figure.subplots(layers, len(timesteps), squeeze=False)
    for layer in range(layers):
        for column, timestep in enumerate(timesteps):
            axes = grid[layer, column]
            bare(axes)
            image = axes.imshow(kept[column, layer].numpy(), cmap=KEPT, vmin=0, vmax=1)
            if layer == 0:
                axes.set_title(f"t = {timestep}", fontsize=9, color=MUTED, pad=4)
    figure.subplots_adjust(left=0.02, right=0.87, top=0.87, bottom=0.06, wspace=0.08, hspace=0.08)
    bar = figure.colorbar(image, cax=figure.add_axes((0.9, 0.06, 0.02, 0.81)), ticks=(0, 0.5, 1))
    bar.ax.set_yticklabels(("never", "half", "always"), fontsize=9, color=MUTED)
    bar.outline.set_visible(False)


def _table(figure, rows: Sequence[tuple[str, str, str, str]]) -> None:
    axes = figure.add_axes((0.06, 0.13, 0.91, 0.86))
    axes.set_axis_off()
    for row, cells in enumerate(rows):
        y = 1 - (row + 0.5) / len(rows)
        for x, text, align in zip((0.0, 0.62, 0.81, 1.0), cells, ("left", *("right",) * 3), strict=True):
            axes.text(x, y, text, ha=align, va="center", fontsize=10, color=MUTED if row == 0 else INK)
    axes.axhline(1 - 1 / len(rows), color=MUTED, linewidth=0.6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
