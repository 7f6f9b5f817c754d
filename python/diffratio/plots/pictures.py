"""Samples, of several models side by side (paper fig. 6 and 12), and which tokens layers keep for them."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from .style import INK, KEPT, MUTED, bare, colour_bar, new_figure, save

_DROPPED = (0.97, 0.80, 0.82)
_FADE = 0.85  # how far a token that is not kept goes towards that colour, which no picture of the project has
_PALE = 0.6  # how far what is not made goes from grey to white


def picture(image: Tensor) -> np.ndarray:
    """Return ``[H, W, 3]`` in [0, 1] of an image ``[C, H, W]`` in [-1, 1]; one channel is dark on white."""
    levels = (image.float() + 1) / 2
    levels = (1 - levels).expand(3, -1, -1) if len(levels) == 1 else levels
    return levels.permute(1, 2, 0).clamp(0, 1).numpy()


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


def side_by_side(rows: Mapping[str, Tensor], captions: Sequence[str], title: str) -> Figure:
    """Draw the samples ``[n, C, H, W]`` in [-1, 1] of each model in a row, with n captions above them."""
    figure = new_figure(1.3 * len(captions) + 1.2, 1.3 * len(rows) + 1.0, title)
    grid = figure.subplots(len(rows), len(captions), squeeze=False)
    for axes in grid.flat:
        bare(axes)
    for row, (name, images) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(textwrap.fill(name, 16), fontsize=9, color=INK)
        for axes, image in zip(row, images, strict=True):
            axes.imshow(picture(image), interpolation="nearest")
    for axes, caption in zip(grid[0], captions, strict=True):
        axes.set_title(textwrap.fill(caption, 20), fontsize=7, color=MUTED)
    return figure


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


def kept_picture(image: Tensor, kept: Tensor, hole: Tensor | None = None) -> np.ndarray:
    """Return the picture of ``image`` ``[C, H, W]``, tokens not ``kept`` (bool ``[N]``) in pale red, those
    outside of the ``hole`` that is made (bool ``[N]``, None: all are) in pale grey."""
    side = round(len(kept) ** 0.5)
    if side * side != len(kept) or image.shape[-1] % side:
        raise ValueError(f"kept has {len(kept)} tokens, not a grid on an image of {image.shape[-1]} pixels")
    colours = picture(image)
    skipped = ~kept if hole is None else hole & ~kept
    colours = np.where(_pixels(skipped, image), colours + _FADE * (np.array(_DROPPED) - colours), colours)
    if hole is not None:
        grey = colours.mean(-1, keepdims=True)
        colours = np.where(_pixels(~hole, image), grey + _PALE * (1 - grey), colours)
    return colours


def _pixels(tokens: Tensor, image: Tensor) -> np.ndarray:
    """[S, S, 1] of [N]: the pixels of marked tokens."""
    side = round(len(tokens) ** 0.5)
    factor = image.shape[-1] // side
    grid = tokens.view(side, side).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return grid[..., None].numpy()


def router_maps(
    images: Tensor, kept: Tensor, timesteps: Sequence[int], title: str, hole: Tensor | None = None
) -> Figure:
    """Draw one panel per sample: the sample itself, then layers downwards and timesteps to the right.

    ``images`` is ``[n, C, H, W]`` in [-1, 1], ``kept`` bool ``[n, len(timesteps), L, N]``; timesteps come in
    the order of sampling, from noise to image. ``hole`` bool ``[n, N]`` are the tokens that are made at all.
    """
    if kept.shape[:2] != (len(images), len(timesteps)):
        raise ValueError(
            f"kept is {tuple(kept.shape)} for {len(images)} images and {len(timesteps)} timesteps"
        )
    samples, columns, layers = kept.shape[:3]
    panel = 0.72 * (columns + 1) + 0.5
    figure = new_figure(samples * panel, 0.72 * layers + 1.2, title)
    for sample, part in enumerate(np.atleast_1d(figure.subfigures(1, samples))):
        grid = part.subplots(layers, columns + 1, squeeze=False)
        for (layer, column), axes in np.ndenumerate(grid[:, 1:]):
            own = None if hole is None else hole[sample]
            shown = kept_picture(images[sample], kept[sample, column, layer], own)
            axes.imshow(shown, interpolation="nearest")
        grid[0, 0].imshow(picture(images[sample]), interpolation="nearest")
        grid[0, 0].set_title("sample", fontsize=9, color=INK)
        name_columns(grid[0, 1:], timesteps)
        for layer, axes in enumerate(grid[:, 0]):
            axes.set_ylabel(f"layer {layer}", fontsize=9, color=MUTED)
        for axes in grid.flat:
            bare(axes)
    return figure


def draw_shares(figure: FigureBase, shares: Tensor, timesteps: Sequence[int]) -> None:
    """Draw which part of the samples keeps each token, layers downwards and timesteps to the right.

    ``shares`` is ``[len(timesteps), L, N]`` in [0, 1], of tokens that are a square.
    """
    if len(shares) != len(timesteps):
        raise ValueError(f"shares has {len(shares)} timesteps but timesteps lists {len(timesteps)}")
    layers, side = shares.shape[1], round(shares.shape[2] ** 0.5)
    figure.suptitle("Which tokens: the part of the samples that keeps them", fontsize=12, color=INK)
    grid = figure.subplots(layers, len(timesteps), squeeze=False)
    for (layer, column), axes in np.ndenumerate(grid):
        bare(axes)
        image = axes.imshow(shares[column, layer].view(side, side).numpy(), cmap=KEPT, vmin=0, vmax=1)
    name_columns(grid[0], timesteps)
    bar = colour_bar(figure, image, grid, ticks=(0, 0.5, 1))
    bar.set_yticklabels(("never", "half", "always"), fontsize=9, color=MUTED)


def name_columns(columns: Sequence[Axes], timesteps: Sequence[int]) -> None:
    """Write the timesteps above the columns of a grid."""
    for axes, timestep in zip(columns, timesteps, strict=True):
        axes.set_title(f"t = {timestep}", fontsize=9, color=MUTED)
