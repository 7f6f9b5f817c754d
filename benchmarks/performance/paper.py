"""The paper's efficiency columns in docs/performance.md: what it prints, what is predicted of it for an A100,
and what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.a100 import show
from benchmarks.a100.overhead import Figure
from benchmarks.a100.predict import device_named
from benchmarks.a100.steps import Sizes, all_steps
from benchmarks.performance.render import markdown

GPU = "a100"
COMMAND = """    python -m benchmarks.a100 --list                    # every step, and how long an A100 takes
    python -m benchmarks.a100                           # all of it; a stopped run goes on where it was
    python -m benchmarks.a100 --step table1-fp32-16 --minutes 8
    python -m benchmarks.a100 --show                    # what was measured, beside the paper's
    python -m benchmarks.a100 --device cpu --tiny --out out/rehearsal
"""
PREDICTED = (
    ("fp32, 16", "table1-fp32-16"), ("fp32, 128", "table1-fp32-128"), ("bf16, 16", "table1-bf16-16"),
    ("bf16, 128", "table1-bf16-128"),
)  # fmt: skip


def paper_section(results: Path) -> list[str]:
    """The section; results: the folder that the command writes to."""
    return [
        "## The paper's efficiency columns, on an A100", "",
        "Tables 1 and 2 and figure 3 with random weights, every system that exists here, by one command:", "",
        COMMAND.rstrip(), "",
        "A batch is of images; guidance doubles it. fp32 is without TF32: the authors' seconds fit that, at "
        "100 steps an image. They do not say their steps, so ratios to the dense model are to be compared. "
        "Memory of a block is what it holds beside weights and inputs, the mean over all blocks, which is "
        "what fits their figures. The tables of ratios that L and LT learned are not published: ours have "
        "their mean, more in the middle layers and in noisy steps. Table 2's cells are missing in the text "
        "that we read; what its prose says is saved is printed beside. ToMe is refused on a hole, whose "
        "tokens it cannot see as a picture. Results go to `benchmarks/results/<gpu>-paper-tables.json`.", "",
        *_predicted(), *_measured(results),
    ]  # fmt: skip


def _predicted() -> list[str]:
    """Table 1: latencies as parts of the dense one's."""
    steps = {step.name: step for step in all_steps(Sizes())}
    cells = []
    for work in steps["table1-fp32-16"].works:
        papers = [_cells(steps[f"table1-fp32-{images}"], work.name)[6] for images in (16, 128)]
        parts = [show.predicted(steps[n], work, device_named(GPU, n.split("-")[1])) for _, n in PREDICTED]
        cells.append([work.name, *papers, *(f"{part:.3f}" for part, _ in parts), f"{parts[0][1]:.3f}"])
    predicted = [f"predicted, {name}" for name, _ in PREDICTED]
    head = ["Table 1, latency of dense", "paper, 16", "paper, 128", *predicted, "FLOPs of dense"]
    return [
        "**Predicted, not measured**: by the roofline of the A100's datasheet, blocks only.", "",
        *markdown(head, cells), "",
    ]  # fmt: skip


def _cells(step, name: str) -> list[str]:
    return next(cells for cells in show.table(step, [], device_named(GPU, step.dtype)) if cells[0] == name)


def _measured(results: Path) -> list[str]:
    """Every step of every machine that was measured."""
    lines = []
    for path in sorted(results.glob("*-paper-tables.json")):
        found = json.loads(path.read_text())
        for step in (*all_steps(Sizes()), *(Figure(dtype, Sizes()) for dtype in ("bf16", "fp32"))):
            rows = [row for row in found["rows"] if row["step"] == step.name]
            if not rows:
                continue
            facts = f"{found['machine']['device']}, commits {', '.join(sorted({r['commit'] for r in rows}))}"
            lines += [f"**{step.name}**, measured on {facts}", ""]
            if isinstance(step, Figure):
                lines += [*markdown(show.FIGURE_HEAD, show.figure(step, rows), text=2), ""]
            else:
                cells = show.table(step, rows, device_named(GPU, step.dtype))
                lines += [*markdown(show.HEAD, cells), ""]
    return lines or ["**Nothing of this has been measured on a GPU yet.**", ""]
