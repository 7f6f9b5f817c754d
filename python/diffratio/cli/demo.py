"""`diffratio demo`: handwritten digits from the dense and from the token-sparse model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .output import check_folder


def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.png and demo.json.")] = Path("out/demo"),
    samples_per_class: Annotated[int, typer.Option(min=1, help="Samples of each digit and model.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Sample real images dense and token-sparse; print FLOPs, latency, memory, accuracy; draw a picture."""
    from ..demo.report import print_report
    from ..demo.run import run_demo

    check_folder(out)
    report = run_demo(out, samples_per_class=samples_per_class, seed=seed, progress=not as_json)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        print_report(report)
