"""The demo's report in words: the table, the note below it, and the titles of the picture."""

from typing import Any

from rich.console import Console
from rich.table import Table


def table_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the report as rows of (what, dense, sparse, sparse / dense), the header first."""
    pair = report["dense"], report["sparse"]
    rows = [("", "dense", "sparse", "ratio")]
    accuracies = [f"{100 * result['accuracy']:.1f} %" for result in pair]
    rows.append((f"digits recognised (real: {100 * report['real_accuracy']:.1f} %)", *accuracies, ""))
    losses = [result["held_out_loss"] for result in pair]
    rows.append(("loss on held-out real digits", *(f"{x:.4f}" for x in losses), _percent(*losses)))
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


def note(report: dict[str, Any]) -> str:
    """Return what part of the full-size block's savings does not come from skipping tokens."""
    cost = report["costs"][-1]
    latency, memory = (
        _percent(cost["dense"][key], cost["all_tokens"][key]) for key in ("milliseconds", "peak_megabytes")
    )
    return f"Full-size block, routed but keeping every token: {latency} of the latency, {memory} of memory."


def print_report(report: dict[str, Any]) -> None:
    """Print the report as a table, a note on it, and where the picture is."""
    console = Console()
    header, *rows = table_rows(report)
    table = Table(*header, title=f"{report['samples']} digits, {report['steps']} steps of DPM-Solver++")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(note(report))
    console.print(f"{report['picture']} written; {report['seconds']:.0f} s in all")


def titles(report: dict[str, Any]) -> tuple[str, str]:
    """Return what stands above the dense and the sparse samples."""
    recognised = [f"{100 * report[name]['accuracy']:.1f} % recognised" for name in ("dense", "sparse")]
    return (
        f"Dense: every token in every block\n{recognised[0]}",
        f"Sparse: {round(100 * (1 - report['compression']))} % of the tokens in every block\n{recognised[1]}",
    )


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _percent(dense: float, sparse: float) -> str:
    return f"{100 * sparse / dense:.1f} %"
