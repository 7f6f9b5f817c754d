"""What routers think of tokens: over the image (paper fig. 2 and 9), and beside learned ratios (fig. 10)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from .pictures import name_columns, picture
from .ratios import few
from .style import INK, KEPT, LAYERS, MUTED, bare, colour_bar, new_figure, plain


def score_maps(noisy: Tensor, scores: Tensor, timesteps: Sequence[int], title: str) -> Figure:
    """Draw one panel per sample: the image as the model was given it, and below it each layer's scores.

    ``noisy`` is ``[n, T, C, H, W]``, ``scores`` ``[n, T, L, N]`` in [0, 1], T the number of ``timesteps``,
    which come in the order of sampling, from noise to image; tokens without a score (NaN) are left white.
    Colours span the scores that are shown: those of routers that start at one half hardly differ on a scale
    from 0 to 1.
    """
    if noisy.shape[:2] != scores.shape[:2] or len(timesteps) != scores.shape[1]:
        shapes = f"scores is {tuple(scores.shape)}, noisy {tuple(noisy.shape)}"
        raise ValueError(f"{shapes}, timesteps {len(timesteps)}: n or T differ")
    samples, columns, layers, tokens = scores.shape
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"scores has {tokens} tokens, which are no square")
    panel, bar = 0.72 * columns + 0.5, 0.9
    figure = new_figure(samples * panel + bar, 0.72 * (layers + 1) + 1.2, title)
    *parts, last = figure.subfigures(1, samples + 1, width_ratios=[panel] * samples + [bar])
    there = scores[scores.isfinite()]
    colours = {"cmap": KEPT, "norm": Normalize(there.min().item(), there.max().item())}
    for sample, part in enumerate(parts):
        grid = part.subplots(layers + 1, columns, squeeze=False)
        for axes in grid.flat:
            bare(axes)
        for axes, image in zip(grid[0], noisy[sample], strict=True):
            axes.imshow(picture(image), interpolation="nearest")
        for (layer, column), axes in np.ndenumerate(grid[1:]):
            values = scores[sample, column, layer].view(side, side).numpy()
            axes.imshow(values, interpolation="nearest", **colours)
        name_columns(grid[0], timesteps)
        for row, axes in enumerate(grid[:, 0]):
            axes.set_ylabel(f"layer {row - 1}" if row else "image", fontsize=9, color=MUTED)
    colour_bar(last, ScalarMappable(**colours), None, cax=last.add_axes((0, 0.15, 0.2, 0.6)), label="score")
    return figure


def scores_of_ratios(ratios: np.ndarray, scores: np.ndarray, title: str) -> Figure:
    """Draw the mean score over the kept ratio, a point for each layer and timestep region.

    Both are ``[L, R]`` in [0, 1]. Pearson's correlation over all points is written above them, unless all
    keep the same.
    """
    if ratios.shape != scores.shape or ratios.ndim != 2:
        raise ValueError(f"ratios and scores must be [L, R] alike, got {ratios.shape} and {scores.shape}")
    layers, regions = ratios.shape
    figure = new_figure(6.4, 5.0, title)
    axes = figure.subplots()
    sizes = 30 + 90 * np.arange(regions) / max(1, regions - 1)
    points = axes.scatter(
        100 * ratios.ravel(),
        scores.ravel(),
        s=np.tile(sizes, layers),
        c=np.repeat(np.arange(layers), regions),
        cmap=LAYERS,
        alpha=0.8,
    )
    plain(axes, "kept tokens (%)", "mean score")
    axes.margins(0.08)
    seen = np.isfinite(scores) & np.isfinite(ratios)
    words = ["larger: noisier timesteps"] if regions > 1 else []
    if np.ptp(ratios[seen]) > 0 and np.ptp(scores[seen]) > 0:
        words.insert(0, f"correlation {np.corrcoef(ratios[seen], scores[seen])[0, 1]:.2f}")
    axes.set_title("; ".join(words), fontsize=10, color=INK, loc="left")
    bar = colour_bar(figure, points, axes, pad=0.02, ticks=few(layers), label="layer")
    bar.set_yticks(few(layers))
    return figure
