"""The pictures of docs/reproduction.md: quality of every run against compression, and what LT has learned;
quality of every system against its measured time and its FLOPs."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.reproduction.plan import DATASETS, TARGETS
from diffratio.plots.style import INK, KEPT, MUTED, RUNS, bare, new_figure, plain, save
from diffratio.plots.tradeoffs import tradeoffs

COLOURS = {"mod": RUNS[1], "mod-clean": RUNS[4], "l": RUNS[0], "lt": RUNS[2]}
BEYOND = 4
"""Times the dense model's v-MSE: more would leave the others no room."""


def draw(path: Path, runs: dict, names: dict[str, str]) -> Path:
    """Write the PNG. runs: (dataset, method, target) -> one result per seed; names: of the methods."""
    figure = new_figure(3.4 * 2 * len(DATASETS), 3.5, "")
    panels = figure.subplots(1, 2 * len(DATASETS), width_ratios=[2, 1] * len(DATASETS))
    for dataset, curve, heat in zip(DATASETS, panels[::2], panels[1::2], strict=True):
        quality(curve, dataset, runs, names)
        learned(heat, runs[dataset, "lt", max(TARGETS)])
        heat.set_title(f"{names['lt']}, {max(TARGETS):.0%}", fontsize=9, color=INK)
    named = {}
    for curve in panels[::2]:
        handles, labels = curve.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    place = {"loc": "outside lower center", "ncols": len(named)}
    figure.legend(named.values(), named, fontsize=9, frameon=False, **place)
    return save(figure, path)


def draw_costs(path: Path, points: list[dict], times: dict) -> Path:
    """Write the PNG. points: of every system, the dense model first, as `tradeoffs` takes them; one whose
    error is many times the dense model's is named in the title alone. times: of `latency.load`."""
    errors = {one["name"]: one["quality"]["v_mse"] for one in points}
    most = BEYOND * points[0]["quality"]["v_mse"]
    beyond = [f"{name} (v-MSE {error:.2f})" for name, error in errors.items() if error > most]
    title = f"{times['dataset']} at {times['target']:.0%}, means of the seeds" + "; beyond: " * bool(beyond)
    shown = [one for one in points if one["quality"]["v_mse"] <= most]
    return save(tradeoffs(shown, title + ", ".join(beyond)), path)


def quality(axes, dataset: str, runs: dict, names: dict[str, str]) -> None:
    dense = [result["quality"]["v_mse"] for result in runs[dataset, "dense", 0.0]]
    axes.axhline(statistics.mean(dense), color=MUTED, linewidth=1, linestyle="--", label="dense")
    for shift, method in enumerate(COLOURS, start=-1):
        found = {
            target: [result["quality"]["v_mse"] for result in runs[dataset, method, target]]
            for target in TARGETS
            if (dataset, method, target) in runs
        }
        if not found:
            continue
        places, errors = [100 * target + 0.4 * shift for target in found], list(found.values())
        axes.plot(
            places, [statistics.mean(one) for one in errors], color=COLOURS[method], label=names[method]
        )
        for x, values in zip(places, errors, strict=True):
            axes.scatter([x] * len(values), values, s=14, color=COLOURS[method])
    plain(axes, "compression (%)", "held-out v-MSE")
    axes.set_title(dataset, fontsize=11, color=INK)
    axes.set_xticks([100 * target for target in TARGETS])
    axes.margins(x=0.2)


def learned(axes, results: list[dict]) -> None:
    """Kept ratios [layers, regions], mean over seeds."""
    tables = [result["ratios"][-1]["ratios"] for result in results]
    mean = [
        [statistics.mean(column) for column in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)
    ]
    bare(axes)
    axes.imshow(mean, cmap=KEPT, vmin=0.2, vmax=1, aspect="auto")
    for layer, row in enumerate(mean):
        for region, ratio in enumerate(row):
            shade = INK if ratio > 0.6 else "white"
            axes.text(region, layer, f"{ratio:.2f}", ha="center", va="center", fontsize=8, color=shade)
    axes.set_xlabel("clean to noisy", fontsize=9, color=INK)
    axes.set_ylabel("layer", fontsize=9, color=INK)
