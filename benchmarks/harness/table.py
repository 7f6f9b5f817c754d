"""Results for the eye: candidates beside each other, one line each."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table

TEXT = ("subject", "candidate", "kept", "mode")
FIGURES = ("ms", "of baseline", "FLOPs of baseline", "FLOPs / latency", "TFLOP/s", "GB/s", "peak MiB")
GPU_ONLY = ("mode", "ms", "TFLOP/s", "GB/s")
LETTERS = {
    "B": "batch",
    "N": "tokens",
    "D": "width",
    "H": "heads",
    "M": "text",
    "L": "layers",
    "steps": "steps",
}


def table(rows: list[dict], gpu: bool) -> Table:
    """Rows of one suite at one shape. "FLOPs / latency" is E, the part of the pruned FLOPs that became saved
    time; the baseline is each subject's first candidate. A CPU shows ratios only, and its peaks. Refused
    candidates come last, their reasons below."""
    first = rows[0]
    shape = [f"{letter}={first[name]}" for letter, name in LETTERS.items() if name in first]
    subjects = [list(group) for _, group in groupby(rows, key=lambda row: (row["subject"], row.get("keep")))]
    title = [first["suite"], *([first["subject"]] if len(subjects) == 1 else []), *shape, first["dtype"]]
    absolute = gpu or first["suite"] == "peak"
    hidden = {*(() if absolute else GPU_ONLY), *(("subject",) if len(subjects) == 1 else ())}
    columns = [name for name in TEXT + FIGURES if name not in hidden]
    out = Table(title=" ".join(title))
    for name in columns:
        out.add_column(name, justify="right" if name in FIGURES else "left")
    for group in subjects:
        measured = [row for row in group if "refused" not in row]
        baseline = next((row["flops"] for row in measured if "of_baseline" in row), 0)  # of the first one
        for i, row in enumerate([*measured, *(row for row in group if "refused" in row)]):
            cells = _cells(row, baseline) | {"subject": row["subject"] if i == 0 else ""}
            out.add_row(*(cells.get(name, "") for name in columns))
    reasons = dict.fromkeys(f"{row['name']}: {row['refused']}" for row in rows if "refused" in row)
    out.caption = "\n".join(reasons) or None
    return out


def _cells(row: dict, baseline: int) -> dict[str, str]:
    bins = f"{row['kept_small']:.1f} / " if "kept_small" in row else ""
    cells = {"candidate": row["name"], "kept": f"{bins}{row['kept']:.1f}"}
    if "refused" in row:
        return cells | {"of baseline": "refused"}
    seconds, flops, moved = row["seconds"], row["flops"], row.get("bytes")
    if "skipped" in row:
        cells["candidate"] += f", {row['skipped']:.0%} skipped"
    cells["mode"] = f"{row['mode']}, {row['cache']}"
    cells["ms"] = f"{seconds * 1e3:.4g}"
    if "peak_bytes" in row:
        cells["peak MiB"] = f"{row['peak_bytes'] / 2**20:.1f}"
    if flops:
        cells["TFLOP/s"] = f"{flops / seconds / 1e12:.1f}"
    if moved:
        cells["GB/s"] = f"{moved / seconds / 1e9:.0f}"
    if "of_baseline" in row:
        cells["of baseline"] = f"{row['of_baseline']:.3f}"
        if flops and baseline:
            cells["FLOPs of baseline"] = f"{flops / baseline:.3f}"
            cells["FLOPs / latency"] = f"{flops / baseline / row['of_baseline']:.2f}"
    return cells
