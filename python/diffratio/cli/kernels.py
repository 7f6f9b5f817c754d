"""`diffratio kernels`: what every shipped GPU kernel costs, from its machine code; no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffratio_kernels import aot

from ..progress import progress_bar

COLUMNS = "kernel configuration dtype sm registers spills shared occupancy matrix useful loads async stores"
CAPTION = """matrix: instructions by shape; useful: matrix work issued over needed
loads, asynchronous loads and stores: instructions by the bytes of one thread"""


def kernels(
    arch: Annotated[
        list[int] | None, typer.Option(help="Compute capability, 80, 90 or 100; repeatable. Default: all.")
    ] = None,
    kernel: Annotated[str | None, typer.Option(help="Only kernels whose name holds this.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a row a line.")] = False,
) -> None:
    """Compile every kernel in every shipped configuration: registers, spills, shared memory, instructions.

    Exit code 1 where a rule is broken: spills, too much shared memory, wasted matrix work or narrow loads in
    attention, more than 64 registers in gather_adaln.
    """
    unknown = set(arch or ()) - set(aot.ARCHITECTURES)
    if unknown:
        raise typer.BadParameter(
            f"arch={min(unknown)} must be one of {', '.join(map(str, aot.ARCHITECTURES))}"
        )
    import_module("triton")  # where it is missing, that says which extra brings it
    why_not = aot.unavailable()
    if why_not:
        typer.echo(f"diffratio kernels: {why_not}", err=True)
        raise typer.Exit(2)
    from diffratio_kernels.aot.report import report, to_json

    found = report(tuple(arch or aot.ARCHITECTURES), kernel, _progress)
    if not found["rows"]:
        raise typer.BadParameter(f"kernel={kernel!r} is in no kernel's name")
    if as_json:
        typer.echo(to_json(found))
    else:
        _print(found)
    raise typer.Exit(1 if found["broken"] else 0)


def _print(found: dict) -> None:
    from diffratio_kernels.aot.occupancy import MULTIPROCESSORS
    from diffratio_kernels.aot.rules import broken

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
