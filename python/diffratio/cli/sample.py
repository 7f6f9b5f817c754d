"""`diffratio sample`: a picture of what a trained model draws."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .eval import Base, Checkpoint, Dataset, Device, Guidance, Sampler, Seed, Source, Steps, load
from .output import Baseline, check_file


def sample(
    path: Source,
    out: Annotated[Path, typer.Option(help="The picture, a PNG file.")] = Path("out/samples.png"),
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="What to draw, a row each; repeatable. Default: held-out captions."
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of the picture. Default: 6, or one for each prompt.")
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="Columns of the picture.")] = 10,
    checkpoint: Checkpoint = None,
    base: Base = None,
    dataset: Dataset = None,
    baseline: Baseline = None,
    seed: Seed = 0,
    sampler: Sampler = None,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the captions as JSON.")] = False,
) -> None:
    """Sample images of held-out captions, or of prompts, and write them as one picture."""
    from ..evaluation.quality import Judge, SampleSettings
    from ..plots.pictures import draw_grid

    check_file(out)
    if prompt and rows is not None:
        raise typer.BadParameter("rows: not with prompt, each of which has a row")
    captions = [text for text in prompt or () for _ in range(columns)]
    count = len(captions) or (rows or 6) * columns
    target = load(path, device, checkpoint=checkpoint, base=base, dataset=dataset, baseline=baseline)
    given = {"sampler": sampler, "steps": steps, "guidance": guidance}
    try:
        settings = SampleSettings.of(target, samples=max(2, count), seed=seed, **given)
        judge = Judge.of(target, settings, progress=not as_json)
        reason = judge.why_not(target)
        if reason is not None:
            raise ValueError(reason)
        images = judge.samples(target, captions=captions or None)[:count]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    captions = captions or judge.held_out.captions(judge.wanted)[:count]
    title = target.name if baseline is None else f"{target.name}, {baseline}"
    draw_grid(out, images, captions, columns, title=title)
    variance = settings.variance(target)
    if as_json:
        typer.echo(json.dumps({"picture": str(out), "captions": captions, "variance": variance}, indent=2))
    else:
        typer.echo(f"{out} written: {len(images)} samples")
        if variance is not None:
            typer.echo(f"variance of ddpm: {variance}")
