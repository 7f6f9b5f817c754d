"""`diffratio sample`: a picture of what a trained model draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .eval import Base, Checkpoint, Dataset, Device, Guidance, Seed, Source, Steps, load
from .output import check_file


def sample(
    path: Source,
    out: Annotated[Path, typer.Option(help="The picture, a PNG file.")] = Path("out/samples.png"),
    rows: Annotated[int, typer.Option(min=1, help="Rows of the picture.")] = 6,
    columns: Annotated[int, typer.Option(min=1, help="Columns of the picture.")] = 10,
    checkpoint: Checkpoint = None,
    base: Base = None,
    dataset: Dataset = None,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 2.0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the captions as JSON.")] = False,
) -> None:
    """Sample images of held-out captions and write them as one picture."""
    from ..evaluation.quality import SampleSettings
    from ..plots.grid import draw_grid

    check_file(out)
    target = load(path, device, checkpoint=checkpoint, base=base, dataset=dataset)
    settings = SampleSettings(max(2, rows * columns), seed, steps, guidance)
    try:
        judge = target.judge(settings, progress=not as_json)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    reason = target.why_not(judge)
    if reason is not None:
        raise typer.BadParameter(reason)
    images = judge.samples(target.model, schedule=target.schedule)[: rows * columns]
    captions = judge.held_out.captions(judge.wanted)[: len(images)]
    draw_grid(out, images, captions, columns, title=target.name)
    if as_json:
        typer.echo(json.dumps({"picture": str(out), "captions": captions}, indent=2))
    else:
        typer.echo(f"{out} written: {len(images)} samples")
