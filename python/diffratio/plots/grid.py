"""Samples side by side, each with its caption."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from .router_maps import picture
from .style import MUTED, bare, new_figure, save


def draw_grid(path: Path, images: Tensor, captions: Sequence[str], columns: int, title: str) -> Path:
    """Write a PNG of ``images`` ``[n, C, H, W]`` in [-1, 1], ``columns`` in a row, captions below."""
    if len(images) != len(captions):
        raise ValueError(f"captions: {len(captions)} for {len(images)} images")
    rows = -(-len(images) // columns)
    figure = new_figure(1.15 * columns + 0.2, 1.45 * rows + 0.6, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        bare(axes)
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        axes.imshow(picture(image), interpolation="nearest")
        axes.set_xlabel(textwrap.fill(caption, 22), fontsize=6, color=MUTED)
    return save(figure, path)


def draw_rows(axes: Axes, rows: Sequence[Tensor], names: Sequence[str]) -> None:
    """Draw a row of images ``[n, C, S, S]`` in [-1, 1] for each of ``names``; n may differ."""
    step = rows[0].shape[-1] + 1  # a pixel apart
    canvas = np.ones((len(rows) * step - 1, max(map(len, rows)) * step - 1, 3))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * step, column * step
            canvas[top : top + step - 1, left : left + step - 1] = picture(image)
    bare(axes)
    axes.imshow(canvas, interpolation="nearest")
    axes.set_yticks([row * step + step / 2 - 1 for row in range(len(rows))], names)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
