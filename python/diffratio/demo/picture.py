"""The demo's picture: dense samples, sparse samples, and which tokens each block kept."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..data.digits import CLASSES, SIZE

_COLUMNS = 10  # samples of each class that the picture shows
_GAP = 1  # pixels between two samples, in sample pixels
_INK = "#1b1b1f"
_MUTED = "#6b6b76"
_MAP = matplotlib.colormaps["magma"]


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


def draw(
    path: Path,
    dense: Tensor,
    sparse: Tensor,
    kept: Tensor,
    timesteps: Sequence[int],
    *,
    titles: tuple[str, str],
    caption: Sequence[tuple[str, str, str, str]],
    note: str,
) -> None:
    """Write the PNG.

    ``dense`` and ``sparse`` are images ``[10 * per_class, 1, 8, 8]`` ordered by class; ``kept`` is
    ``[len(timesteps), layers, 8, 8]``, the share of samples in [0, 1] that kept each token. ``titles`` stand
    above the two grids; ``caption`` is a table of four columns, the header first; ``note`` stands below it.
    """
    if kept.shape[0] != len(timesteps):
        raise ValueError(f"kept has {kept.shape[0]} timesteps but timesteps lists {len(timesteps)}")
    layers = kept.shape[1]
    figure = Figure(figsize=(11.0, 14.6), dpi=130, facecolor="white")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(5.6, 5.6, 3.2))

    for axes, images, title in zip(top.subplots(1, 2), (dense, sparse), titles, strict=True):
        axes.imshow(montage(images, _COLUMNS), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=12, color=_INK, pad=8)
        pitch = SIZE + _GAP
        axes.set_yticks([row * pitch + SIZE / 2 - 0.5 for row in range(CLASSES)], map(str, range(CLASSES)))
        axes.set_xticks([])
        _bare(axes)
    top.subplots_adjust(left=0.06, right=0.97, top=0.93, bottom=0.01, wspace=0.08)

    middle.suptitle(
        "Where the sparse model computes: share of samples that keep each token, by block and timestep",
        fontsize=12,
        color=_INK,
        y=0.975,
    )
    grid = middle.subplots(layers, len(timesteps), squeeze=False)
    for layer in range(layers):
        for column, timestep in enumerate(timesteps):
            axes = grid[layer, column]
            axes.set_xticks([])
            axes.set_yticks([])
            _bare(axes)
            image = axes.imshow(kept[column, layer].numpy(), cmap=_MAP, vmin=0, vmax=1)
            if layer == 0:
                axes.set_title(f"t = {timestep}", fontsize=9, color=_MUTED, pad=4)
            if column == 0:
                axes.set_ylabel(f"block {layer}", fontsize=9, color=_MUTED)
    middle.subplots_adjust(left=0.06, right=0.9, top=0.88, bottom=0.03, wspace=0.08, hspace=0.08)
    bar_axes = middle.add_axes((0.925, 0.03, 0.014, 0.85))
    bar = middle.colorbar(image, cax=bar_axes, ticks=(0, 0.5, 1))
    bar.ax.set_yticklabels(("never", "half", "always"), fontsize=9, color=_MUTED)
    bar.outline.set_visible(False)

    _table(bottom, caption)
    bottom.text(0.06, 0.05, note, fontsize=9, color=_MUTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _bare(axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=_MUTED)


def _table(figure, rows: Sequence[tuple[str, str, str, str]]) -> None:
    axes = figure.add_axes((0.06, 0.13, 0.91, 0.86))
    axes.set_axis_off()
    for row, cells in enumerate(rows):
        y = 1 - (row + 0.5) / len(rows)
        for x, text, align in zip((0.0, 0.62, 0.81, 1.0), cells, ("left", *("right",) * 3), strict=True):
            axes.text(x, y, text, ha=align, va="center", fontsize=10, color=_MUTED if row == 0 else _INK)
    axes.axhline(1 - 1 / len(rows), color=_MUTED, linewidth=0.6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
