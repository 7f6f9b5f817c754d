"""The roofline: each operator's speed as a part of the machine's largest product, over FLOPs per byte."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..evaluation.results import machine_name, select
from ..evaluation.roofline import Roof
from .style import INK, new_figure, plain


def roofline_figure(rows: Sequence[dict], roof: Roof) -> Figure:
    """Rows of suite "operator" of one machine, dtype, mode and shape: the fastest candidate of each operator
    at each kept part, plain PyTorch's beside it. What has no FLOPs, as a selection, has no place in it.

    Raises ValueError where nothing was measured.
    """
    rows = [row for row in select(rows, suite="operator") if row["flops"]]
    if not rows:
        raise ValueError("results: no row of suite 'operator'")
    first = rows[0]
    title = f"operators, B={first['batch']} N={first['tokens']}, {first['dtype']}, {machine_name(first)}"
    figure = new_figure(9, 6, title)
    axes = figure.subplots()
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    for colour, subject in zip(matplotlib.colormaps["tab20"].colors, subjects, strict=False):
        own = [row for row in rows if row["subject"] == subject]
        plain_rows = [row for row in own if row["name"] == "torch eager"]
        ours = [_fastest(own, kept) for kept in dict.fromkeys(row["kept"] for row in own)]
        axes.scatter(*_places(plain_rows, roof), s=26, facecolor="none", edgecolor=colour, zorder=3)
        axes.scatter(*_places(ours, roof), s=26, color=colour, label=subject, zorder=3)
    most = max(row["flops"] / row["bytes"] for row in rows)
    intensity = np.geomspace(0.1, max(most, 10 * roof.balance), 200)
    axes.plot(intensity, np.minimum(1, intensity / roof.balance), color=INK, linewidth=1.2, label="roof")
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain(axes, "FLOPs per byte that must move", "part of the largest product's FLOP/s")
    axes.legend(fontsize=8, frameon=False, ncols=2, title="filled: ours, the fastest; rings: plain PyTorch")
    return figure


def _places(rows: list[dict], roof: Roof) -> tuple[list[float], list[float]]:
    intensities = [row["flops"] / row["bytes"] for row in rows]
    return intensities, [row["flops"] / row["seconds"] / roof.flops for row in rows]


def _fastest(rows: list[dict], kept: float) -> dict:
    return min(
        (row for row in rows if row["kept"] == kept and row["name"] != "torch eager"),
        key=lambda row: row["seconds"],
    )
