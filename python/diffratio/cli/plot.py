"""`diffratio plot`: the paper's figures from run directories and from results of `diffratio bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .eval import Device, Seed, device_of
from .output import check_folder, names_errors


@names_errors
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `train`, .jsonl files of `bench`.")],
    out: Annotated[Path, typer.Option(help="Folder of the pictures, one for each run.")] = Path("out/plots"),
    figure: Annotated[
        list[str] | None,
        typer.Option(help="trajectories, regions, maps or quality; repeatable. Default: all."),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Samples of each model in the quality figure.")] = 256,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of DPM-Solver++ in it.")] = 20,
    guidance: Annotated[float, typer.Option(help="Weight of guidance in it, 1 is none.")] = 2.0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the files' names as JSON.")] = False,
) -> None:
    """Draw ratios over training, layers x timesteps, router maps, and quality against kept tokens; of results
    latency and memory against compression, and the roofline."""
    from ..evaluation.quality import SampleSettings
    from ..plots.results import draw_results
    from ..plots.run import FIGURES, Run, draw_quality, draw_run, why_no_samples

    results = [path for path in runs if path.suffix == ".jsonl"]
    runs = [path for path in runs if path not in results]
    figures = figure or list(FIGURES)
    unknown = sorted(set(figures) - set(FIGURES))
    if unknown:
        raise ValueError(f"figure={unknown[0]!r} must be one of {', '.join(FIGURES)}")
    options = {"device": device_of(device), "progress": not as_json}
    loaded = [Run(path) for path in runs]
    if len({run.path.name for run in loaded}) < len(loaded):
        raise ValueError("runs: two of them have the same name")
    for folder in (out, *(out / run.path.name for run in loaded)):
        check_folder(folder)
    if any(run.flow for run in loaded) and "maps" in figures:
        if figure is not None:
            raise ValueError("figure='maps' is not drawn for flow models")
        typer.echo("no maps of flow models", err=True)
    written = [picture for path in results for picture in draw_results(path, out)]
    if loaded and figure is None and (reason := next(filter(None, map(why_no_samples, loaded)), None)):
        typer.echo(f"no maps and no quality: {reason}", err=True)
        figures = ["trajectories", "regions"]
    written += [path for run in loaded for path in draw_run(run, out / run.path.name, figures, **options)]
    if loaded and "quality" in figures:
        written += draw_quality(loaded, out, SampleSettings(samples, seed, steps, guidance), **options)
    if as_json:
        typer.echo(json.dumps([str(path) for path in written], indent=2))
    else:
        typer.echo("\n".join(f"{path} written" for path in written))
