"""Tables of docs/performance.md, from rows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from statistics import median

from benchmarks.harness.table import LETTERS
from benchmarks.performance.targets import Target
from diffratio.evaluation.flops import TransformerShape, products
from diffratio.evaluation.results import KEY, Roof
from diffratio.plan import DEVICES
from tools.tune.waves import MULTIPROCESSORS, best_tile


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]], text: int = 1) -> list[str]:
    """A table whose first `text` columns are words and whose others are figures."""
    head = list(head)
    rule = ["---"] * text + ["---:"] * (len(head) - text)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def target_table(targets: Iterable[Target]) -> list[str]:
    words = {None: "not measured", True: "yes", False: "**no**"}
    rows = [
        (t.what, f"{'at least' if t.least else 'at most'} {t.must:g}",
         "" if t.measured is None else f"{t.measured:.3g}", words[t.holds])
        for t in targets
    ]  # fmt: skip
    return markdown(("", "must", "measured", "holds"), rows)


def subject_tables(rows: list[dict], gpu: bool) -> list[str]:
    """Every row of every subject, in the order of the files; refused candidates with their reason."""
    lines = []
    for _, group in groupby(rows, key=lambda row: tuple(row.get(name) for name in KEY if name != "keep")):
        subject = list(group)
        first = subject[0]
        shape = [f"{letter}={first[name]}" for letter, name in LETTERS.items() if name in first]
        lines += [
            f"**{first['subject']}** {' '.join([*shape, first['dtype']])}, commit {first['commit']}",
            "",
        ]
        lines += _subject_table(subject, gpu) + [""]
    return lines


def _subject_table(rows: list[dict], gpu: bool) -> list[str]:
    absolute = ["ms"] if gpu else []
    columns = ["candidate", "kept", "mode, cache", *absolute, "of baseline", "spread", "FLOPs of baseline",
               "E", "peak MiB"]  # fmt: skip
    lines = []
    for row in rows:
        bins = f"{row['kept_small']} / " if "kept_small" in row else ""
        skipped = f" ({row['skipped']:.0%} of steps skipped)" if "skipped" in row else ""
        cells = [row["name"] + skipped, f"{bins}{row['kept']}"]
        if "refused" in row:
            blank = [""] * (len(columns) - 3)
            lines.append([*cells, f"refused: {row['refused']}".replace("|", "/"), *blank])
            continue
        of_baseline = row.get("of_baseline")
        same = (one for one in rows if "of_baseline" in one and one.get("keep") == row.get("keep"))
        baseline = next(same, {"flops": 0})["flops"]  # the baseline comes first, where it was not refused
        flops = row["flops"] / baseline if baseline and row["flops"] else None
        lines.append([
            *cells, f"{row['mode']}, {row['cache']}", *([f"{row['seconds'] * 1e3:.4g}"] if gpu else []),
            _number(of_baseline), f"{row['spread']:.2f}", _number(flops),
            _number(flops / of_baseline if flops and of_baseline else None, 2),
            f"{row['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in row else "",
        ])  # fmt: skip
    return markdown(columns, lines, text=3)


def roofline_table(rows: list[dict], roof: Roof, launch: float) -> list[str]:
    """Operators by part of the roof, and where the rest of their time goes: the launch, tiles that the last
    wave of a product leaves idle or that stick out of it, and what is left to explain."""
    lines = []
    for row in rows:
        least = max(row["flops"] / roof.flops, row["bytes"] / roof.bytes)
        idle, seconds = _idle(row, roof), row["seconds"]
        lines.append([
            row["subject"], row["name"], f"{row['batch']} x {row['tokens']}", str(row["kept"]),
            "FLOPs" if row["flops"] / row["bytes"] > roof.balance else "bytes",
            f"{least / seconds:.2f}", f"{launch / seconds:.2f}",
            "" if idle is None else f"{idle / seconds:.2f}",
            f"{max(0.0, 1 - (least + launch + (idle or 0)) / seconds):.2f}",
        ])  # fmt: skip
    head = ("operator", "by", "B x N", "kept", "bound by", "of the roof", "one launch", "idle tiles", "left")
    return markdown(head, lines, text=5)


def _idle(row: dict, roof: Roof) -> float | None:
    """Seconds that multiprocessors of a known GPU are idle in a product, with the best tile for its size."""
    transformer = TransformerShape(1, row["width"], 1, row["tokens"])
    sizes = products(transformer).get(row["subject"])
    device = next((one for one in DEVICES.values() if one.name == row["device"]), None)
    if sizes is None or device is None:
        return None
    choice = best_tile(row["batch"] * row["keep"], *sizes, device)
    whole = 2 * choice.tile.rows * choice.tile.columns * sizes[1] / choice.splits
    return max(0.0, choice.waves * MULTIPROCESSORS[device.name] * whole - row["flops"]) / roof.flops


def kernel_table(rows: list[dict]) -> list[str]:
    """Kernels compiled ahead of time: the worst of each kernel's configurations per architecture."""
    key = ("source", "kernel", "architecture")
    rows = sorted(rows, key=lambda row: tuple(str(row[name]) for name in key))
    lines = []
    for (source, kernel, architecture), group in groupby(rows, key=lambda row: tuple(row[n] for n in key)):
        own = list(group)
        spilling = sum(row["spills"] > 0 for row in own)
        matrix = sorted({name for row in own for name in row["matrix"]})
        lines.append([
            kernel, source, f"sm_{architecture}", str(len(own)), str(max(row["registers"] for row in own)),
            str(spilling), str(max(row["shared"] for row in own)),
            f"{min(row['occupancy'] for row in own):.2f} to {max(row['occupancy'] for row in own):.2f}",
            f"{median(row['occupancy'] for row in own):.2f}", ", ".join(matrix),
        ])  # fmt: skip
    head = ("kernel", "by", "for", "configurations", "registers, most", "of them spill", "shared bytes, most",
            "occupancy", "median", "matrix instructions")  # fmt: skip
    return markdown(head, lines, text=3)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
