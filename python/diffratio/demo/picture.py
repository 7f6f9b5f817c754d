"""The demo's picture: samples of both models, what the sparse one keeps and where it looks, and the table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..data.digits import CLASSES
from ..plots.pictures import draw_rows, draw_shares
from ..plots.ratios import draw_regions
from ..plots.style import INK, draw_table, new_figure

_COLUMNS = 10  # samples of each class that are shown
_COSTS = (
    ("gflop", "FLOPs", "GFLOP"),
    ("milliseconds", "latency", "ms"),
    ("peak_megabytes", "memory", "MB"),
)


def by_class(images: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the first images ``[n, 1, 8, 8]`` of each of the ten ``labels`` ``[n]``."""
    return [images[labels == digit][:_COLUMNS] for digit in range(CLASSES)]


def compose(
    report: dict[str, Any], samples: Sequence[list[Tensor]], shares: Tensor, timesteps: Sequence[int]
) -> Figure:
    """Return the figure. ``samples`` are those of the dense and the sparse model, ``by_class``; ``shares``
    ``[len(timesteps), L, N]`` is the part of the samples that keeps each token. The rest is in ``report``."""
    figure = new_figure(11.0, 14.4, title(report))
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(5.6, 4.6, 2.6))
    names = ("Dense: every token", f"DiffRatio-LT: {report['mean_kept']:.1%} of the tokens")
    for axes, rows, name in zip(top.subplots(1, 2), samples, names, strict=True):
        draw_rows(axes, rows, [str(digit) for digit in range(CLASSES)])
        axes.set_title(name, fontsize=12, color=INK)
    amount, place = middle.subfigures(1, 2, width_ratios=(1, 1.8))
    amount.suptitle("How much each layer keeps (%)", fontsize=12, color=INK)
    draw_regions(amount.subplots(), np.array(report["kept_tenths"]) / 10)
    draw_shares(place, shares, timesteps)
    draw_table(bottom.subplots(), table_rows(report))
    return figure


def title(report: dict[str, Any]) -> str:
    """Return what stands above the picture and the printed table."""
    return f"{report['samples']} digits, {report['steps']} steps of DPM-Solver++"


def table_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return the report as rows of (what, dense, routed with all tokens kept, sparse, sparse / dense), the
    header first. The third column tells what the operators save by themselves."""
    dense, sparse, real = report["dense"], report["sparse"], report["real"]
    right, error, kept = "accuracy_joint", "v_mse", f"{report['mean_kept']:.1%}"
    rows = [
        ("", "dense", "all kept", "sparse", "ratio"),
        (f"recognised (real: {real[right]:.1%})", f"{dense[right]:.1%}", "", f"{sparse[right]:.1%}", ""),
        ("v-MSE on held-out digits", f"{dense[error]:.4f}", "", f"{sparse[error]:.4f}",
         f"{sparse[error] / dense[error]:.1%}"),
        ("tokens kept", "100.0%", "100.0%", kept, kept),
    ]  # fmt: skip
    for what, cost in report["costs"].items():
        for key, name, unit in _COSTS:
            values = [cost[way][key] for way in ("dense", "all_tokens", "sparse")]
            cells = (f"{value:{'.0f' if value >= 100 else '#.3g'}} {unit}" for value in values)
            rows.append((f"{what}: {name}", *cells, f"{values[2] / values[0]:.1%}"))
    return rows
