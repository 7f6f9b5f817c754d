"""The efficiency columns of the paper's Tables 1 and 2 and its figure 3, on an A100 or whatever is here:

    python -m benchmarks.a100 --list                       # every step, and how long an A100 takes
    python -m benchmarks.a100                              # all of it, appended to benchmarks/results
    python -m benchmarks.a100 --step table1-fp32-16 --minutes 8
    python -m benchmarks.a100 --show                       # what was measured, beside the paper's
    python -m benchmarks.a100 --device cpu --tiny --out F  # a rehearsal

PixArt XL/2 with random weights; a batch is of images, guidance doubles it, and fp32 is without TF32. Each
system takes turns with the dense model; a row is written as soon as it is measured, so a run that was
stopped, or whose --minutes are over, goes on where it was. What does not fit or is refused is a row with the
reason. Exit code 1: a kernel of ours failed; 3: the minutes were over before everything was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from diffratio.evaluation.results import file_of
from diffratio.progress import progress_bar

from ..harness.machine import machine
from . import show
from .measure import measure
from .overhead import Figure
from .predict import device_named, forwards, measuring_seconds
from .steps import TINY, Sizes, Step, Subjects, all_steps

RESULTS = Path(__file__).parents[1] / "results"
NOT_ALL = 3


class Results:
    """The file of one machine: facts of the last run, and rows, each with its commit."""

    def __init__(self, path: Path, facts: dict):
        self.path, self.facts = path, facts
        self.rows = json.loads(path.read_text())["rows"] if path.exists() else []

    def done(self, step: Step | Figure) -> set:
        """Systems of a step that were measured at this commit; of a figure token counts."""
        key = "tokens" if isinstance(step, Figure) else "system"
        own = (r for r in self.rows if r["step"] == step.name and r["commit"] == self.facts["commit"])
        return {row[key] for row in own}

    def add(self, row: dict) -> None:
        """Write a row; one of an earlier commit makes room."""
        new = row | {"commit": self.facts["commit"], "date": self.facts["date"]}
        key = new["step"], new["system"], new.get("kept")
        self.rows = [r for r in self.rows if (r["step"], r["system"], r.get("kept")) != key] + [new]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"machine": self.facts, "rows": self.rows}, indent=1) + "\n")


def estimated(step: Step | Figure, gpu: str, rounds: int) -> float:
    """Seconds of a step, predicted."""
    device = device_named(gpu, step.dtype)
    if isinstance(step, Figure):
        return (3 * rounds + 6) * step.flops / device.peak_flops
    return sum(measuring_seconds(step, work, device, rounds) for work in step.works)


def run(step: Step | Figure, results: Results, arguments, left: float) -> Iterator[dict]:
    """Rows of a step that are not there yet, while the next is predicted to fit into the seconds left."""
    end, device, done = time.monotonic() + left, arguments.device, results.done(step)
    progress = not arguments.json
    if isinstance(step, Figure):
        if estimated(step, arguments.gpu, arguments.rounds) <= left:
            for tokens in (tokens for tokens in step.works if tokens not in done):
                yield from step.rows(tokens, device, arguments.rounds, progress)
        return
    subjects = Subjects(step, device)
    works = sorted((work for work in step.works if work.name not in done), key=lambda work: work.kind)
    for work in progress_bar(works, show=progress, desc=step.name, unit="system"):
        rates = device_named(arguments.gpu, step.dtype)
        if time.monotonic() + measuring_seconds(step, work, rates, arguments.rounds) <= end:
            yield measure(step, subjects, work, arguments.rounds, progress)


def shown(step: Step | Figure, results: Results, gpu: str) -> None:
    """Print a step's table."""
    console = Console() if Console().is_terminal else Console(width=190)
    own = isinstance(step, Figure)
    title = (
        step.name if own else f"{step.name}: {2 * step.images} samples; predicted: {gpu}, of its datasheet"
    )
    out = Table(title=title)
    for name in show.FIGURE_HEAD if own else show.HEAD:
        out.add_column(name, justify="left" if name in ("system", "what") else "right")
    rates = device_named(gpu, step.dtype)
    for cells in show.figure(step, results.rows) if own else show.table(step, results.rows, rates):
        out.add_row(*cells)
    rows = [row for row in results.rows if row["step"] == step.name and "refused" in row]
    out.caption = "\n".join(f"{row['system']}: {row['refused']}" for row in rows) or None
    console.print(out)
    if not own and step.table == "table2":
        console.print("\n".join(show.differences(step, results.rows)))


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", action="append", help="repeatable; all when left out")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop before they are over")
    parser.add_argument("--rounds", type=int, default=3, help="of whole forwards, in turns")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is one")
    parser.add_argument("--gpu", choices=("a100", "h100", "h200"), default="a100", help="whose rates predict")
    parser.add_argument("--tiny", action="store_true", help="sizes of a rehearsal")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    parser.add_argument("--show", action="store_true", help="print what was measured and end")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, one a line, and no tables")
    arguments = parser.parse_args(words)
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.tiny and arguments.out == RESULTS:
        parser.error("--tiny: a rehearsal is no result; give --out another folder")
    if arguments.rounds < 1:
        parser.error(f"--rounds: {arguments.rounds} must be positive")
    sizes = TINY if arguments.tiny else Sizes()
    steps = [*(Figure(dtype, sizes) for dtype in ("bf16", "fp32")), *all_steps(sizes)]
    known = {step.name: step for step in steps}
    for name in arguments.step or ():
        if name not in known:
            parser.error(f"--step: {name!r} is not one of {', '.join(known)}")
    arguments.steps = [known[name] for name in arguments.step or known]
    return arguments


def main(words: list[str] | None = None) -> int:
    arguments = parsed(words)
    times = {step.name: estimated(step, arguments.gpu, arguments.rounds) for step in arguments.steps}
    for name, seconds in times.items():
        print(f"{name:24} {seconds / 60:7.1f} min predicted on {arguments.gpu}", file=sys.stderr)
    print(f"{'in all':24} {sum(times.values()) / 60:7.1f} min", file=sys.stderr)
    if arguments.list:
        return 0
    facts = machine() | {"device_type": arguments.device, "forwards": forwards(arguments.rounds)}
    path = arguments.out / f"{file_of(arguments.out, facts['device']).stem}-paper-tables.json"
    results, start, failed, missing = Results(path, facts), time.monotonic(), [], 0
    for step in arguments.steps:
        if not arguments.show:
            left = 60 * arguments.minutes - (time.monotonic() - start)
            for row in run(step, results, arguments, left):
                results.add(row)
                failed += [row["system"]] if "failed" in row else []
                if arguments.json:
                    print(json.dumps(row), flush=True)
            missing += len(step.works) > len(results.done(step))
        if not arguments.json:
            shown(step, results, arguments.gpu)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    if missing:
        print(
            f"{missing} steps are not complete: the same command goes on; results in {path}", file=sys.stderr
        )
    return 1 if failed else NOT_ALL if missing else 0


if __name__ == "__main__":
    sys.exit(main())
