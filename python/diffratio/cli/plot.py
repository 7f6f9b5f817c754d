"""`diffratio plot`: the paper's figures from runs and models, reports of `eval` and results of `bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .eval import Device, Seed, device_of
from .output import check_folder, names_errors

_PROMPTS = 8  # held-out captions of the models side by side


@names_errors
def plot(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Runs of `train`, and models to set beside them; .json files of `eval --json`, .jsonl files "
            "of `bench`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the pictures, one for each run.")] = Path("out/plots"),
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help="Of runs: trajectories, regions, maps, scores, scores-of-ratios, quality or side-by-side; "
            "repeatable. Default: all."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Samples of each model in the quality figure.")] = 256,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Of side-by-side, repeatable. Default: the first held-out captions."
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of side-by-side, repeatable: rows of the first path with a baseline of `eval`.",
        ),
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of DPM-Solver++ for every sample.")] = 20,
    guidance: Annotated[float, typer.Option(help="Weight of guidance, 1 is none.")] = 2.0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the files' names as JSON.")] = False,
) -> None:
    """Draw ratios over training, layers x timesteps, which tokens routers keep and how they score them,
    quality against kept tokens, models side by side; of reports quality against latency and FLOPs; of results
    latency and memory against compression, and the roofline."""
    from ..evaluation.quality import SampleSettings
    from ..plots.results import draw_results
    from ..plots.run import FIGURES, RATIOS_ONLY, ROUTED, Run, draw_quality, draw_run, why_no_samples
    from ..plots.side_by_side import draw_side_by_side
    from ..plots.tradeoffs import draw_tradeoffs
    from ..train.run_log import RUN

    results = [path for path in paths if path.suffix == ".jsonl"]
    reports = [path for path in paths if path.suffix == ".json"]
    models = [path for path in paths if path not in results + reports]
    runs = [Run(path) for path in models if (path / RUN).is_file()]
    unknown = sorted(set(figure or ()) - set(FIGURES))
    if unknown:
        raise ValueError(f"figure={unknown[0]!r} must be one of {', '.join(FIGURES)}")
    figures = list(figure or FIGURES)
    if len(runs) < len(models) and "side-by-side" not in figures:
        raise ValueError(f"figure={figures[0]!r} is drawn of runs alone, and one of the paths is none")
    if len({run.path.name for run in runs}) < len(runs):
        raise ValueError("paths: two of the runs have the same name")
    for folder in (out, *(out / run.path.name for run in runs)):
        check_folder(folder)
    if any(run.flow for run in runs) and (routed := [name for name in ROUTED if name in figures]):
        if figure is not None:
            raise ValueError(f"figure={routed[0]!r} is not drawn for flow models")
        typer.echo(f"no {', '.join(routed)} of flow models", err=True)
    possible = {"side-by-side", *(name for run in runs for name in run.figures())}
    if impossible := [name for name in figure or () if name not in possible]:
        raise ValueError(f"figure={impossible[0]!r} needs routers, or learned ratios, which no run has")
    if figure is None and (reason := next(filter(None, map(why_no_samples, runs)), None)):
        typer.echo(f"only ratios are drawn: {reason}", err=True)
        figures = list(RATIOS_ONLY)
    options = {"device": device_of(device), "progress": not as_json}
    written = [picture for path in results for picture in draw_results(path, out)]
    written += [draw_tradeoffs(reports, out)] if reports else []
    written += [path for run in runs for path in draw_run(run, out / run.path.name, figures, **options)]
    if runs and "quality" in figures:
        written += draw_quality(runs, out, SampleSettings(samples, seed, steps, guidance), **options)
    alone = figure is None and len(models) == len(runs) == 1 and not baseline
    if models and "side-by-side" in figures and not alone:
        settings = SampleSettings(_PROMPTS, seed, steps, guidance)
        written.append(draw_side_by_side(models, out, settings, prompt or (), baseline or (), **options))
    if as_json:
        typer.echo(json.dumps([str(path) for path in written], indent=2))
    else:
        typer.echo("\n".join(f"{path} written" for path in written))
