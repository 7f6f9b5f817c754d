"""Writes the table of docs/inpainting.md, of what was measured before:

diffratio bench inpaint --batch 1 --layers 2 --rounds 3 --json > benchmarks/results/inpaint.json
python -m benchmarks.holes
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.performance.render import markdown
from diffratio.evaluation.results import machine_name

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "inpainting.md"
RESULTS = ROOT / "benchmarks" / "results" / "inpaint.json"
START, END = "<!-- measured: benchmarks.holes writes from here -->", "<!-- to here -->"


def table(run: dict[str, Any]) -> list[str]:
    """Time and FLOPs over those of the dense model on the whole picture; their quotient is 1 where all
    that is not computed is saved."""
    [dense, *rows] = run["rows"]
    lines = []
    for row in rows:
        hole, kept = row.get("hole"), f"{row['kept']:.0%}"
        name = row["name"] if hole is None else f"{hole:.1%} ({round(hole * row['tokens'])} tokens)"
        if "refused" in row:
            lines.append([name, kept, f"refused: {row['refused']}", "", ""])
            continue
        time, flops = row["of_baseline"], row["flops"] / dense["flops"]
        lines.append([name, kept, f"{time:.3f}", f"{flops:.3f}", f"{time / flops:.2f}"])
    return [
        *markdown(("hole", "kept in it", "time of dense", "FLOPs of dense", "time / FLOPs"), lines),
        "",
        f"{dense['layers']} layers, width {dense['width']}, {dense['tokens']} tokens, {dense['text']} of "
        f"text, batch {dense['batch']}, {dense['dtype']}; medians of {dense['rounds']} rounds, all in turns.",
        f"{machine_name(run)}, torch {run['versions']['torch']}, commit {run['commit']}.",
    ]


def main() -> None:
    before, rest = DOCUMENT.read_text().split(START)
    lines = "\n".join(table(json.loads(RESULTS.read_text())))
    DOCUMENT.write_text(f"{before}{START}\n\n{lines}\n\n{END}{rest.partition(END)[2]}")
    print(f"written to {DOCUMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
