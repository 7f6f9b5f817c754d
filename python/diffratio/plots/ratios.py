"""Learned ratios: their way through training (paper fig. 4 and 8), and where they end (fig. 5)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from .style import INK, KEPT, LAYERS, MUTED, TARGET, bare, colour_bar, new_figure, plain

_WRITTEN_CELLS = 300  # more than this and numbers do not fit


def trajectories(steps: np.ndarray, ratios: np.ndarray, target: float, title: str) -> Figure:
    """Kept tokens of every layer over training, their mean and the target.

    ``steps`` is ``[S]``, ``ratios`` the kept ratios ``[S, L, R]`` in [0, 1], ``target`` the kept ratio that
    training aims at. A layer's line is the mean over its timestep regions.
    """
    if ratios.ndim != 3 or len(steps) != len(ratios):
        raise ValueError(f"ratios must be [S, L, R] with S = {len(steps)}, got {ratios.shape}")
    layers = ratios.shape[1]
    figure = new_figure(8.0, 4.8, title)
    axes = figure.subplots()
    colours = ScalarMappable(Normalize(0, max(1, layers - 1)), LAYERS)
    for layer, line in enumerate(ratios.mean(2).T):
        axes.plot(steps, 100 * line, color=colours.to_rgba(layer), linewidth=1.4, label=f"layer {layer}")
    mean = 100 * ratios.mean((1, 2))
    axes.plot(steps, mean, color=INK, linewidth=2.8, label=f"mean, {mean[-1]:.1f} % at the end")
    axes.axhline(
        100 * target, color=TARGET, linewidth=1.6, linestyle="--", label=f"target, {100 * target:.1f} %"
    )
    plain(axes, "training step", "kept tokens (%)")
    axes.set_ylim(0, 103)
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    axes.legend(handles=axes.lines[-2:], loc="lower left", fontsize=10, frameon=False)
    colour_bar(figure, colours, axes, pad=0.02, ticks=few(layers), label="layer")
    return figure


def region_map(ratios: np.ndarray, title: str, flow: bool = False) -> Figure:
    """Heat map of the kept ratios ``[L, R]``: layers downwards, regions of timesteps, or of a flow's noise
    levels, from clean to noisy."""
    if ratios.ndim != 2:
        raise ValueError(f"ratios must be [L, R], got {ratios.shape}")
    layers, regions = ratios.shape
    figure = new_figure(max(4.6, 1.05 * regions + 2.4), max(3.2, 0.34 * layers + 1.9), title)
    axes = figure.subplots()
    colour_bar(figure, draw_regions(axes, ratios, flow), axes, pad=0.03, label="kept tokens (%)")
    return figure


def draw_regions(axes: Axes, ratios: np.ndarray, flow: bool = False) -> AxesImage:
    """Draw the kept ratios ``[L, R]`` in [0, 1] as a heat map; returns what a colour bar is made from."""
    layers, regions = ratios.shape
    image = axes.imshow(100 * ratios, cmap=KEPT, vmin=0, vmax=100, aspect="auto")
    edges = [-(-1000 * r // regions) for r in range(regions + 1)]  # of region floor(t R / 1000)
    names = [f"{low}–{high - 1}" for low, high in zip(edges, edges[1:], strict=False)]
    if flow:
        names = [f"{r / regions:.2f}–{(r + 1) / regions:.2f}" for r in range(regions)]
    bare(axes)
    axes.set_xticks(range(regions), names, rotation=0 if regions <= 6 else 60)
    axes.set_yticks(few(layers))
    axes.set_xlabel(
        f"{'noise level' if flow else 'training timestep'}, from clean to noisy", fontsize=11, color=INK
    )
    axes.set_ylabel("layer", fontsize=11, color=INK)
    axes.tick_params(labelsize=10, colors=MUTED, length=0)
    if ratios.size <= _WRITTEN_CELLS:
        for (layer, region), ratio in np.ndenumerate(ratios):
            colour = "white" if ratio < 0.6 else INK
            axes.text(region, layer, f"{100 * ratio:.0f}", ha="center", va="center", color=colour, fontsize=9)
    return image


def few(count: int) -> list[int]:
    """Ticks for ``count`` layers, at most about 14."""
    return list(range(0, count, -(-count // 14)))
