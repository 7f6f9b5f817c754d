"""The demo's report in words: its tables, the note below them, and the titles of the picture."""

from typing import Any

from rich.console import Console
from rich.table import Table


def table_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the report as rows of (what, dense, sparse, sparse / dense), the header first."""
    pair = report["dense"], report["sparse"]
    rows = [("", "dense", "sparse", "ratio")]
    accuracies = [f"{100 * result['accuracy']:.1f} %" for result in pair]
    rows.append((f"digits recognised (real: {100 * report['real_accuracy']:.1f} %)", *accuracies, ""))
    losses = [result["v_mse"] for result in pair]
    rows.append(("v-MSE on held-out real digits", *(f"{x:.4f}" for x in losses), _percent(*losses)))
    kept = report["kept"]
    learned = f"tokens kept (learned ratios: {100 * kept['mean_ratio']:.1f} %)"
    rows.append((learned, "100.0 %", *[_percent(1, kept["mean_of_bins"])] * 2))
    for cost in report["costs"]:
        for key, what, unit in (
            ("gflop", "computation", "GFLOP"),
            ("milliseconds", "latency", "ms"),
            ("peak_megabytes", "peak memory", "MB"),
        ):
            dense, sparse = cost["dense"][key], cost["sparse"][key]
            values = (f"{_digits(value)} {unit}" for value in (dense, sparse))
            rows.append((f"{cost['what']}: {what}", *values, _percent(dense, sparse)))
    return rows


def kept_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return how much each block keeps, by timesteps from noise to image, the header first."""
    tenths = report["kept"]["tenths"]
    regions = len(tenths[0])
    edges = [round(1000 * region / regions) for region in range(regions + 1)]
    spans = [f"t = {high - 1}–{low}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
    rows = [(f"block {layer}", *(f"{10 * kept} %" for kept in row[::-1])) for layer, row in enumerate(tenths)]
    return [("tokens kept", *spans[::-1]), *rows]


def note(report: dict[str, Any]) -> str:
    """Return what part of the full-size block's savings does not come from skipping tokens."""
    cost = report["costs"][-1]
    latency, memory = (
        _percent(cost["dense"][key], cost["all_tokens"][key]) for key in ("milliseconds", "peak_megabytes")
    )
    return f"Full-size block, routed but keeping every token: {latency} of the latency, {memory} of memory."


def print_report(report: dict[str, Any]) -> None:
    """Print the report as two tables, a note on it, and where the picture is."""
    console = Console()
    title = f"{report['samples']} digits, {report['steps']} steps of DPM-Solver++"
    console.print(_table(table_rows(report), title))
    console.print(_table(kept_rows(report), "What the sparse model has learned"))
    console.print(note(report))
    console.print(f"{report['picture']} written; {report['seconds']:.0f} s in all")


def titles(report: dict[str, Any]) -> tuple[str, str]:
    """Return what stands above the dense and the sparse samples."""
    recognised = [f"{100 * report[name]['accuracy']:.1f} % recognised" for name in ("dense", "sparse")]
    kept = _percent(1, report["kept"]["mean_of_bins"])
    return (
        f"Dense: every token in every block\n{recognised[0]}",
        f"DiffRatio-LT: {kept} of the tokens on average\n{recognised[1]}",
    )


def _table(rows: list[tuple[str, ...]], title: str) -> Table:
    header, *rest = rows
    table = Table(*header, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rest:
        table.add_row(*row)
    return table


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _percent(dense: float, sparse: float) -> str:
    return f"{100 * sparse / dense:.1f} %"
