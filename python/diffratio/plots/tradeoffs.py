"""Quality against what it costs, measured: every system in one figure (paper fig. 11)."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .quality import PANELS
from .style import INK, MUTED, RUNS, new_figure, plain, save

COSTS = (("milliseconds", "measured latency"), ("gflop", "FLOPs"))
SAME = ("dataset", "device", "dtype", "batch", "samples", "seed", "steps", "guidance")
"""What reports must agree in to stand in one figure."""


def read_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read what ``diffratio eval --json`` printed, a file each.

    Raises:
        ValueError: a file holds no report, or one without quality; or two differ in how they were measured.
    """
    reports = []
    for path in paths:
        try:
            report = json.loads(path.read_text())
            quality, _ = report["quality"], report["cost"]["dense"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"paths: {path} is no report of `diffratio eval --json` ({error!r})") from None
        if quality is None:
            raise ValueError(f"paths: {path} has no quality: {report.get('why_no_quality')}")
        for name in SAME:
            if reports and report.get(name) != reports[0].get(name):
                raise ValueError(
                    f"paths: {path} has {name}={report.get(name)!r}, {paths[0]} {reports[0].get(name)!r}: "
                    "only what was measured alike stands in one figure"
                )
        reports.append(report)
    return reports


def points(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what each report measured, and the dense model that it began with, one for all where it is the
    same: ``name``, ``quality``, and each of `COSTS` as a part of the dense model's, which took turns with it.
    Where nothing tells what it began with, its own weights dense take that place."""
    found = []
    for report in reports:
        name, baseline = report["name"], report.get("baseline")
        began = report.get("base", report.get("dense"))
        if began is not None and all(began != one["quality"] for one in found):
            whose = "dense" if "base" in report or baseline else f"{name}, dense"
            found.append({"name": whose, "quality": began, **{key: 1.0 for key, _ in COSTS}})
        dense, *_, own = report["cost"].values()
        parts = {key: own[key] / dense[key] for key, _ in COSTS}
        name += f", {baseline}" if baseline else ""
        found.append({"name": name, "quality": report["quality"], **parts})
    return found


def tradeoffs(found: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw each figure of merit over latency and over FLOPs, a point for each of ``points``."""
    panels = [panel for panel in PANELS if all(panel[0] in one["quality"] for one in found)]
    if not panels:
        raise ValueError("reports: they have no figure of quality in common")
    figure = new_figure(9.6, 3.6 * len(panels) + 0.6, title)
    grid = figure.subplots(len(panels), len(COSTS), squeeze=False, sharey="row")
    for row, (key, label, factor) in zip(grid, panels, strict=True):
        for axes, (cost, what) in zip(row, COSTS, strict=True):
            for one, colour, marker in zip(found, cycle(RUNS), _markers(), strict=False):
                place = 100 * one[cost], factor * one["quality"][key]
                axes.scatter(*place, s=46, color=colour, marker=marker, label=one["name"], zorder=3)
            axes.axvline(100, color=MUTED, linewidth=0.8)
            plain(axes, f"{what} (% of dense)", label if axes is row[0] else "")
            axes.margins(0.12)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9,
                  frameon=False, labelcolor=INK)  # fmt: skip
    return figure


def _markers():
    """A new shape whenever all colours have been used."""
    for marker in cycle("osD^vP"):
        for _ in RUNS:
            yield marker


def draw_tradeoffs(paths: Sequence[Path], out: Path) -> Path:
    """Write ``tradeoffs.png`` of reports of ``diffratio eval --json``."""
    reports = read_reports(paths)
    report = reports[0]
    title = f"{report['dataset']}: {report['samples']} samples, {report['steps']} steps\n"
    title += f"cost of one forward of {report['batch']} samples, {report['dtype']} on {report['device']}"
    return save(tradeoffs(points(reports), title), out / "tradeoffs.png")
