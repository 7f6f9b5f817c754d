"""Latency and memory against compression (paper fig. 3): what is measured, and what FLOPs would give."""

from collections.abc import Sequence
from itertools import cycle

from matplotlib.figure import Figure

from ..evaluation.results import machine_name
from .style import INK, MUTED, RUNS, new_figure, plain

SUITES = ("block", "model", "sampling")
SHAPE = {
    "batch": "B", "tokens": "N", "width": "D", "heads": "H", "text": "M", "layers": "L", "steps": "steps"
}  # fmt: skip
PANELS = (("of_baseline", "latency / dense"), ("memory", "peak memory / dense"))


def latency_figure(rows: Sequence[dict], suite: str) -> Figure:
    """One line of panels per shape of a suite; `rows` are flat results of one machine, dtype and mode. What
    counts no FLOPs (a part of a block) is left out.

    Raises ValueError where nothing was measured.
    """
    rows = [row for row in rows if row["suite"] == suite and "of_baseline" in row and row["flops"]]
    shapes = sorted({_shape(row) for row in rows})
    if not shapes:
        raise ValueError(f"results: no row of suite {suite!r}")
    title = f"{rows[0]['subject']}, {rows[0]['dtype']}, {machine_name(rows[0])}"
    figure = new_figure(10, 3.4 * len(shapes) + 0.5, title)
    for shape, line in zip(shapes, figure.subplots(len(shapes), 2, squeeze=False), strict=True):
        own = [row for row in rows if _shape(row) == shape]
        for axes, (figure_of_merit, label) in zip(line, PANELS, strict=True):
            _draw(axes, own, figure_of_merit)
            sizes = zip(SHAPE.values(), shape, strict=True)
            title = " ".join(f"{letter}={size}" for letter, size in sizes if size)
            axes.set_title(title, fontsize=10, color=MUTED, loc="left")
            plain(axes, "compression (%)", label)
            axes.set_xlim(-4, 104 - 100 * min(row["kept"] for row in own))
            axes.set_ylim(bottom=0)
        line[0].legend(fontsize=8, frameon=False)
    return figure


def _shape(row: dict) -> tuple[int, ...]:
    return tuple(row.get(name, 0) for name in SHAPE)


def _draw(axes, rows: list[dict], merit: str) -> None:
    baseline, colours = rows[0], cycle(RUNS)
    rows = [row for row in rows if ("peak_bytes" if merit == "memory" else merit) in row]
    for name in dict.fromkeys(row["name"] for row in rows[1:]):
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["kept"])
        values = [_value(row, baseline, merit) for row in own]
        compression = [100 * (1 - row["kept"]) for row in own]
        colour = next(colours)
        if len(own) == 1 and own[0]["kept"] == 1:
            axes.axhline(values[0], color=colour, linewidth=1, linestyle="--", label=name)
        else:
            axes.plot(compression, values, marker="o", markersize=4, linewidth=1.4, color=colour, label=name)
    ours = sorted((row for row in rows if row["name"].startswith(("mod_block", "diffratio"))),
                  key=lambda row: row["kept"])  # fmt: skip
    if merit == "of_baseline" and ours:
        places = [100 * (1 - row["kept"]) for row in ours]
        ideal = [row["flops"] / baseline["flops"] for row in ours]
        axes.plot(places, ideal, color=INK, linewidth=1, linestyle=":", marker="_", label="FLOPs")
    axes.axhline(1, color=MUTED, linewidth=0.8)


def _value(row: dict, baseline: dict, merit: str) -> float:
    return row["peak_bytes"] / baseline["peak_bytes"] if merit == "memory" else row[merit]
