"""What all figures share."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, FigureBase

INK = "#1b1b1f"
MUTED = "#6b6b76"
TARGET = "#d1495b"
LAYERS = matplotlib.colormaps["viridis"]
KEPT = matplotlib.colormaps["magma"]
RUNS = ("#2e6f95", "#d1495b", "#3b8b5d", "#8d5fb0", "#c07c2a", "#5a5a66")

DPI = 150


def new_figure(width: float, height: float, title: str) -> Figure:
    """A white figure of ``width`` x ``height`` inches with its title."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(title, fontsize=13, color=INK)
    return figure


def plain(axes: Axes, x: str, y: str) -> None:
    """Label the axes and leave out the frame's top and right."""
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    axes.tick_params(labelsize=10, colors=MUTED)
    axes.grid(color="#e6e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)


def colour_bar(figure: FigureBase, image: ScalarMappable, axes: Axes | np.ndarray | None, **options) -> Axes:
    """Return the axes of a bar of the colours of ``image``; ``options`` are matplotlib's."""
    bar = figure.colorbar(image, ax=axes, **options)
    bar.ax.yaxis.label.set(fontsize=11, color=INK)
    bar.ax.tick_params(labelsize=10, colors=MUTED)
    bar.outline.set_visible(False)
    return bar.ax


def bare(axes: Axes) -> None:
    """No ticks and no frame: for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_table(axes: Axes, rows: Sequence[Sequence[str]]) -> None:
    """Write a table without lines: the header first, the first column on the left."""
    axes.set_axis_off()
    table = axes.table([list(row) for row in rows], loc="center", edges="open", cellLoc="right")
    table.auto_set_font_size(False)
    table.auto_set_column_width(range(len(rows[0])))
    for (row, column), cell in table.get_celld().items():
        cell.set_text_props(fontsize=10, color=MUTED if row == 0 else INK, ha="right" if column else "left")
        cell.set_height(1 / len(rows))


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
