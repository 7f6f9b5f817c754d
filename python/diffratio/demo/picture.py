"""The demo's pictures: samples of both models, what the sparse one keeps and where it looks, and the table;
repainted holes, and what a step costs for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ..data.digits import CLASSES
from ..plots.pictures import draw_rows, draw_shares, picture
from ..plots.ratios import draw_regions
from ..plots.style import INK, MUTED, TARGET, bare, draw_table, new_figure
from .repainting import Repainted

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
            cells = (_amount(value, unit) for value in values)
            rows.append((f"{what}: {name}", *cells, f"{values[2] / values[0]:.1%}"))
    return rows


def compose_repainted(report: dict[str, Any], done: Repainted) -> Figure:
    """Return the figure of the repainted pictures: ``report`` and ``done`` are what ``repaint`` returned."""
    figure = new_figure(9.0, 3.0 + 2.2 * len(done.mask), repainted_title(report))
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.2 * len(done.mask), 3.0))
    grid = top.subplots(len(done.mask), 4, squeeze=False)
    before, after = 2 * done.before - 1, 2 * done.after - 1
    differing = np.where(
        done.differing[..., None], to_rgb(TARGET), np.where(done.mask[:, 0, ..., None], 0.8, 1.0)
    )
    for row, edit in enumerate(report["edits"]):
        outside = f"{edit['outside_differing']} pixels outside differ"
        shown = {
            "picture": picture(before[row]),
            f"hole: {edit['hole']:.1%} of the tokens": picture(before[row].masked_fill(done.mask[row], 0)),
            edit["prompt"]: picture(after[row]),
            outside: differing[row],
        }
        for axes, (name, image) in zip(grid[row], shown.items(), strict=True):
            bare(axes)
            axes.imshow(image, interpolation="nearest", vmin=0, vmax=1)
            axes.set_title(name, fontsize=9, color=MUTED)
    draw_table(bottom.subplots(), cost_rows(report))
    bottom.supxlabel(encoder_line(report), fontsize=9, color=MUTED)
    return figure


def repainted_title(report: dict[str, Any]) -> str:
    """Return what stands above the picture and the printed table of repainting."""
    return (
        f"Holes, repainted by a LazyPixArt of {report['training_steps']} steps of training; "
        f"{report['mean_kept']:.1%} of their tokens kept"
    )


def cost_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return what a step of the decoder costs as rows of (hole, FLOPs and time dense, and sparse), the header
    first. All tokens are absolute, dense; the rest is a part of that."""
    rows = [("a step", "dense FLOPs", "time", "sparse FLOPs", "time")]
    keys = [(way, key) for way in ("dense", "sparse") for key in ("gflop", "milliseconds")]
    for what, costs in report["costs"].items():
        dense = costs[0]["dense"]
        for cost in costs:
            name = f"{what}: all tokens" if cost["hole"] == 1 else f"{what}: hole {cost['hole']:.1%}"
            cells = [f"{cost[way][key] / dense[key]:.1%}" for way, key in keys]
            if cost is costs[0]:
                cells[:2] = _amount(dense["gflop"], "GFLOP"), _amount(dense["milliseconds"], "ms")
            rows.append((name, *cells))
    return rows


def _amount(value: float, unit: str) -> str:
    return f"{value:{'.0f' if value >= 100 else '#.3g'}} {unit}"


def encoder_line(report: dict[str, Any]) -> str:
    """Return what the encoder costs."""
    what = next(iter(report["costs"]))
    return f"{what}: the encoder takes {report['encoder_milliseconds']:.3g} ms, once for an edit"
