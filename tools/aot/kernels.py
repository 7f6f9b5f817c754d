"""`make kernels`: what every shipped GPU kernel costs, from its machine code; no GPU is needed.

Compiles every kernel in every shipped configuration: registers, spills, shared memory, instructions.

Exit code 1 where a rule is broken: spills, too much shared memory; in attention wasted matrix work, narrow
loads, products that wait for each other, or with heads of 72 on sm_90 fewer than two blocks or no copies in
flight; more than 64 registers in row kernels of one bin; 2 where nothing can be compiled.

python -m tools.aot.kernels [--arch N ...] [--kernel TEXT] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffratio.progress import progress_bar

from . import ARCHITECTURES, unavailable
from .occupancy import MULTIPROCESSORS
from .rules import broken

COLUMNS = """kernel configuration dtype sm registers spills shared occupancy matrix useful step flight
loads async stores"""
CAPTION = """matrix: instructions by shape; useful: matrix work issued over needed
step, flight: instructions of a pass of attention's loop, and groups of copies that go on beside it
loads, asynchronous loads and stores: instructions by the bytes of one thread"""


def main() -> int:
    """Print the table or the JSON.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    capability = "compute capability; may be repeated (all)"
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES, help=capability)
    parser.add_argument("--kernel", help="only kernels whose name holds this")
    parser.add_argument("--json", action="store_true", help="print JSON, a row a line")
    arguments = parser.parse_args()
    reason = unavailable()
    if reason:
        parser.error(reason)
    from .report import report, to_json  # it needs Triton

    found = report(tuple(arguments.arch or ARCHITECTURES), arguments.kernel, _progress)
    if not found["rows"]:
        parser.error(f"--kernel {arguments.kernel} is in no kernel's name")
    if arguments.json:
        print(to_json(found))
    else:
        _print(found)
    return int(bool(found["broken"]))


def _print(found: dict) -> None:

    table = Table(caption=CAPTION)
    for place, column in enumerate(COLUMNS.split()):
        table.add_column(column, justify="right" if place > 2 else "left", no_wrap=place < 2)
    for row in found["rows"]:
        limit = MULTIPROCESSORS[row["architecture"]].shared_per_block
        useful = row["mma_useful"]
        table.add_row(
            f"{row['source']} {row['kernel']}", row["label"], row["dtype"],
            str(row["architecture"]), str(row["registers"]), str(row["spills"]),
            f"{row['shared'] / 1024:.1f} / {limit // 1024} KiB", f"{row['occupancy']:.0%}",
            _counts(row["matrix"]), "" if useful is None else f"{useful:.3f}",
            *(str(row.get(figure, "")) for figure in ("step", "in_flight")),
            *(_counts(row[kind]) for kind in ("loads", "async", "stores")),
            style="red" if broken(row) else None,
        )  # fmt: skip
    console = Console(width=200)
    console.print(table)
    versions = ", ".join(f"{tool} {version}" for tool, version in found["toolchain"].items() if version)
    console.print(f"{len(found['rows'])} rows; {versions}", highlight=False)
    if found["no_cuda"]:
        console.print(f"no CUDA C++ kernels: {escape(found['no_cuda'])}", highlight=False)
    for words in found["broken"]:
        console.print(f"[red]broken[/] {escape(words)}", highlight=False)


def _progress(rows: Iterable[dict], total: int) -> Iterable[dict]:
    return progress_bar(rows, desc="compiling", total=total)


def _counts(counts: dict[str, int]) -> str:
    """Largest first, as in 16: 8, 4: 2."""
    shapes = sorted(counts, key=lambda shape: (len(shape), shape), reverse=True)
    return ", ".join(f"{shape}: {counts[shape]}" for shape in shapes)


if __name__ == "__main__":
    sys.exit(main())
