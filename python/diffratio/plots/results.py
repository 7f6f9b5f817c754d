"""Pictures of result files: latency and memory against compression (paper fig. 3), and the roofline."""

from collections.abc import Collection, Sequence
from itertools import cycle, groupby
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.results import Roof, file_of, machine_name, read, roof_of, select
from .style import INK, MUTED, RUNS, new_figure, plain, save

SUITES = ("block", "model", "sampling")
MACHINE = ("device", "threads", "dtype")
SHAPE = {
    "batch": "B", "tokens": "N", "width": "D", "heads": "H", "text": "M", "layers": "L", "steps": "steps"
}  # fmt: skip


def draw_results(path: Path, out: Path) -> list[Path]:
    """Write every picture that a file has rows for into `out`; returns their paths.

    Of the modes CUDA graphs are drawn where they were measured, of the caches the cold one.
    Raises ValueError for a file of other content, or one without a row to draw.
    """
    if not path.is_file():
        raise ValueError(f"results: {path} is not a file")
    rows, written = select(read(path), cache="cold"), []
    for machine in dict.fromkeys(tuple(row[name] for name in MACHINE) for row in rows):
        device, threads, dtype = machine
        own = _captured(select(rows, **dict(zip(MACHINE, machine, strict=True))))
        stem = f"{file_of(out, device).stem}-{threads}-{dtype}"
        for suite in SUITES:
            # What counts no FLOPs (a part of a block) is left out.
            drawn = [row for row in select(own, suite=suite) if "of_baseline" in row and row["flops"]]
            if drawn:
                written.append(save(_latency(drawn), out / f"{stem}-{suite}.png"))
        roof = roof_of(own, device, dtype, threads)
        # What has no FLOPs, as a selection, has no place in a roofline.
        operators = [row for row in select(own, suite="operator") if row["flops"] and roof is not None]
        for shape, group in groupby(sorted(operators, key=_operator_shape), key=_operator_shape):
            name = f"{stem}-roofline-{'x'.join(map(str, shape))}.png"
            written.append(save(_roofline(list(group), roof), out / name))
    if not written:
        raise ValueError(f"results: {path} has no suite to draw ({', '.join(SUITES)}, or peak and operator)")
    return written


def _captured(rows: list[dict]) -> list[dict]:
    """Rows of CUDA graphs; of the suites whose baseline has none, eager ones too."""
    graphs = {row["suite"] for row in rows if row["mode"] == "graph" and "of_baseline" in row}
    return [row for row in rows if row["mode"] == "graph" or row["suite"] not in graphs]


def _operator_shape(row: dict) -> tuple[int, ...]:
    return row["batch"], row["tokens"], row["width"], row["text"]


def _shape(row: dict) -> tuple[int, ...]:
    return tuple(row.get(name, 0) for name in SHAPE)


def _latency(rows: Sequence[dict]) -> Figure:
    """Two panels for each shape of a suite: what is measured, and what FLOPs would give."""
    shapes = sorted({_shape(row) for row in rows})
    title = f"{rows[0]['subject']}, {rows[0]['dtype']}, {machine_name(rows[0])}"
    figure = new_figure(10, 3.4 * len(shapes) + 0.5, title)
    for shape, (time, memory) in zip(shapes, figure.subplots(len(shapes), 2, squeeze=False), strict=True):
        own = [row for row in rows if _shape(row) == shape]
        sizes = zip(SHAPE.values(), shape, strict=True)
        title = " ".join(f"{letter}={size}" for letter, size in sizes if size)
        _lines(time, own, "of_baseline", 1, "latency / dense")
        ours = [row for row in own if row["name"].startswith(("mod_block", "diffratio"))]
        if ours:
            kept, flops = zip(*sorted((row["kept"], row["flops"]) for row in ours), strict=True)
            places, ideal = 100 * (1 - np.array(kept)), np.array(flops) / own[0]["flops"]
            time.plot(places, ideal, color=INK, linewidth=1, linestyle=":", marker="_", label="FLOPs")
        time.legend(fontsize=8, frameon=False)
        measured = [row for row in own if "peak_bytes" in row]
        _lines(memory, measured, "peak_bytes", own[0].get("peak_bytes"), "peak memory / dense")
        for axes in (time, memory):
            axes.axhline(1, color=MUTED, linewidth=0.8)
            axes.set_title(title, fontsize=10, color=MUTED, loc="left")
            axes.set_xlim(-4, 104 - 100 * min(row["kept"] for row in own))
            axes.set_ylim(bottom=0)
    return figure


def _lines(axes: Axes, rows: list[dict], merit: str, unit: float, label: str) -> None:
    """A line for each candidate but the first, in units; dashed across where it keeps all tokens only."""
    colours = cycle(RUNS)
    for name in dict.fromkeys(row["name"] for row in rows[1:]):
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["kept"])
        values = [row[merit] / unit for row in own]
        style = {"color": next(colours), "label": name}
        if [row["kept"] for row in own] == [1]:
            axes.axhline(values[0], linewidth=1, linestyle="--", **style)
        else:
            compression = [100 * (1 - row["kept"]) for row in own]
            axes.plot(compression, values, marker="o", markersize=4, linewidth=1.4, **style)
    plain(axes, "compression (%)", label)


def _roofline(rows: Sequence[dict], roof: Roof) -> Figure:
    """Each operator's speed as a part of the largest product's, over FLOPs per byte: the fastest candidate
    of each at each kept part, plain PyTorch's beside it. Rows are of one machine, dtype, mode and shape.
    """
    first = rows[0]
    title = f"operators, B={first['batch']} N={first['tokens']}, {first['dtype']}, {machine_name(first)}"
    figure = new_figure(9, 6, title)
    axes = figure.subplots()
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    for colour, subject in zip(matplotlib.colormaps["tab20"].colors, subjects, strict=False):
        own = [row for row in rows if row["subject"] == subject]
        peers = [row for row in own if row["name"] == "torch eager"]
        slowest_first = sorted(own, key=lambda row: row["seconds"], reverse=True)
        fastest = {row["kept"]: row for row in slowest_first if row["name"] != "torch eager"}.values()
        axes.scatter(*_places(peers, roof), s=26, facecolor="none", edgecolor=colour, zorder=3)
        axes.scatter(*_places(fastest, roof), s=26, color=colour, label=subject, zorder=3)
    most = max(row["flops"] / row["bytes"] for row in rows)
    intensity = np.geomspace(0.1, max(most, 10 * roof.balance), 200)
    axes.plot(intensity, np.minimum(1, intensity / roof.balance), color=INK, linewidth=1.2, label="roof")
    axes.set(xscale="log", yscale="log")
    plain(axes, "FLOPs per byte that must move", "part of the largest product's FLOP/s")
    axes.legend(fontsize=8, frameon=False, ncols=2, title="filled: ours, the fastest; rings: plain PyTorch")
    return figure


def _places(rows: Collection[dict], roof: Roof) -> tuple[list[float], list[float]]:
    intensities = [row["flops"] / row["bytes"] for row in rows]
    return intensities, [row["flops"] / row["seconds"] / roof.flops for row in rows]
