"""Quality against kept tokens: the by-product models along a run (paper fig. 7 and 13)."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..diffusion import PREDICTED
from .style import MUTED, RUNS, new_figure, plain

# Entry of `Judge`'s figures, name on the axis, factor.
PANELS = (
    ("fid", "FID", 1),
    ("frechet", "Fréchet distance", 1),
    ("accuracy_joint", "all attributes right (%)", 100),
    ("hole_error", "MSE in the hole", 1),
    *((f"{kind}_mse", f"{kind}-MSE", 1) for kind in (*PREDICTED.values(), "velocity")),
)


def quality_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Draw each figure of merit over kept tokens, a line per run with its steps written beside the points.

    ``runs`` maps a run's name to its models in the order of training, each with ``step``, ``mean_kept`` in
    [0, 1] and the figures of ``Judge``.
    """
    if not runs or not all(runs.values()):
        raise ValueError("runs must hold at least one model each")
    every = [100 * one["mean_kept"] for models in runs.values() for one in models]
    panels = [panel for panel in PANELS if all(panel[0] in one for models in runs.values() for one in models)]
    figure = new_figure(4.6 * len(panels), 4.2, title)
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, (key, label, factor) in zip(grid[0], panels, strict=True):
        for (name, models), colour in zip(runs.items(), cycle(RUNS), strict=False):
            kept = [100 * one["mean_kept"] for one in models]
            values = [factor * one[key] for one in models]
            axes.plot(kept, values, marker="o", markersize=5, linewidth=1.4, color=colour, label=name)
            for one, x, y in zip(models, kept, values, strict=True):
                place = {"xytext": (4, 4), "textcoords": "offset points"}
                axes.annotate(str(one["step"]), (x, y), fontsize=8, color=MUTED, **place)
        plain(axes, "kept tokens (%)", label)
        axes.margins(x=0.12, y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        # More compression to the right, as training goes.
        axes.invert_xaxis()
        if min(every) == max(every):
            left = min(102, max(18, every[0] + 10))
            axes.set_xlim(left, left - 20)
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False)
    return figure
