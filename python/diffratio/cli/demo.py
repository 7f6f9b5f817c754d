"""`diffratio demo`: handwritten digits, dense and token-sparse, and repainted holes."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .eval import print_table
from .output import check_folder
from .train import ratio_lines


def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.png, repainted.png and demo.json.")] = Path(
        "out/demo"
    ),
    samples: Annotated[int, typer.Option(min=2, help="Samples of each model.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Sample real images dense and token-sparse, repaint holes; print what it costs; draw pictures."""
    from ..demo.picture import cost_rows, encoder_line, repainted_title, table_rows, title
    from ..demo.run import run_demo
    from ..evaluation.quality import SampleSettings

    check_folder(out)
    report = run_demo(out, SampleSettings(samples, seed), progress=not as_json)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    console = Console()
    header, *rows = table_rows(report)
    print_table(console, title(report), header, rows)
    console.print(*ratio_lines([[tenths / 10 for tenths in row] for row in report["kept_tenths"]]), sep="\n")
    painted = report["repainting"]
    header, *rows = cost_rows(painted)
    print_table(console, repainted_title(painted), header, rows)
    outside = sum(edit["outside_differing"] for edit in painted["edits"])
    console.print(encoder_line(painted), f"{outside} pixels outside of the holes differ", sep="\n")
    console.print(f"{report['picture']}, {painted['picture']} written; {report['seconds']:.0f} s in all")
