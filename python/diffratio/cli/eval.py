"""`diffratio eval`: quality, latency, FLOPs and memory of a trained model."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from .output import Baseline, check_file, check_folder, names_errors, print_table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

COLUMNS = {
    "base": "the model that the run started from",
    "dense": "the trained weights with routing off",
    "sparse": "the same weights, routed as learned",
    "trained": "what the run made of it",
    "hidden": "the control that is shown no picture around the hole",
}
"""Columns of the table of quality."""
COSTS = (
    ("gflop", "computation", "GFLOP"),
    ("milliseconds", "latency", "ms"),
    ("peak_megabytes", "peak memory", "MB"),
)

TIMED = ("milliseconds",)
"""Costs that the paper has of whole samplings, and so of forwards; memory it has of layers."""

_COLUMNS = 8  # of the picture

Source = Annotated[
    str, typer.Argument(help="A run, its final or checkpoint-N, a model, an adapter, digits or shapes.")
]
Checkpoint = Annotated[int | None, typer.Option(min=0, help="A checkpoint of the run. Default: its end.")]
Base = Annotated[str | None, typer.Option(help="The model of an adapter that lies alone.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Default: the run's own.")]
Seed = Annotated[int, typer.Option(help="Seed of the starting noise.")]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="dpm++ (DPM-Solver++) or ddpm (IDDPM: with the variance that a model has learned). Default: "
        "that of the run's recipe, else dpm++; a flow has its pipeline's own."
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of the sampler. Default: of the run's recipe, else 20.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Weight of classifier-free guidance, 1 is none; or what a model that is told it is told. "
        "Default: of the run's recipe, else 2."
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]


@names_errors
def eval(
    path: Source,
    checkpoint: Checkpoint = None,
    base: Base = None,
    dataset: Dataset = None,
    baseline: Baseline = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2, help="Samples that quality is judged on. Default: 512, of a pipeline with a VAE 8."
        ),
    ] = None,
    seed: Seed = 0,
    sampler: Sampler = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples of the forward that is timed.")] = 16,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = "auto",
    fid_weights: Annotated[Path | None, typer.Option(help="Inception of torch-fidelity: adds FID.")] = None,
    clip_weights: Annotated[Path | None, typer.Option(help="ViT-B-32 of open_clip: adds CLIP score.")] = None,
    hps_weights: Annotated[
        Path | None, typer.Option(help="HPSv2's ViT-H-14, for open_clip: adds the preference score.")
    ] = None,
    keep_samples: Annotated[
        Path | None,
        typer.Option(help="A folder for all samples, as PNG: a stopped evaluation goes on with them."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A PNG of samples: base, dense and sparse, a row each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge a model: Frechet distance, attribute accuracy, v-MSE or velocity-MSE; latency, FLOPs, memory."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    if picture is not None:
        check_file(picture)
    if keep_samples is not None:
        check_folder(keep_samples)
    from ..evaluation.evaluate import evaluate
    from ..evaluation.networks import Networks
    from ..evaluation.quality import SampleSettings

    options = {"checkpoint": checkpoint, "base": base, "dataset": dataset, "dtype": DTYPES[dtype]}
    target = load(path, device, baseline=baseline, **options)
    if samples is None:
        samples = 8 if target.in_latents else 512
    given = {"sampler": sampler, "steps": steps, "guidance": guidance}
    settings, pictures = SampleSettings.of(target, samples=samples, seed=seed, **given), {}
    report = evaluate(
        target,
        settings,
        batch=batch,
        networks=Networks(fid_weights, clip_weights, hps_weights),
        progress=not as_json,
        pictures=pictures,
        keep_samples=keep_samples,
    )
    if picture is not None and pictures:
        _draw(pictures, picture, report["name"])
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        print_report(report)


def _draw(pictures: dict[str, torch.Tensor], path: Path, title: str) -> None:
    """Write the first samples of each model, a row each."""
    from ..plots.pictures import draw_grid

    order = ["given", *COLUMNS]
    rows = sorted(pictures, key=lambda name: order.index(name) if name in order else len(order))
    columns = min(_COLUMNS, len(pictures[rows[0]]))
    images = torch.cat([pictures[name][:columns] for name in rows])
    draw_grid(path, images, [name for name in rows for _ in range(columns)], columns, title)


@names_errors
def load(path: str, device: str, **options):
    """Return what ``load_target`` loads; an argument that is wrong becomes a ``typer.BadParameter``."""
    from ..evaluation.target import load_target

    return load_target(path, device=device_of(device), **options)


def device_of(option: str) -> str:
    """Return cpu or cuda for the option ``--device``; a ``typer.BadParameter`` where it cannot be used."""
    there = torch.cuda.is_available()
    if option not in ("auto", "cpu", "cuda") or (option == "cuda" and not there):
        raise typer.BadParameter(f"device={option!r} must be cpu, or cuda where there is one")
    return ("cuda" if there else "cpu") if option == "auto" else option


def print_report(report: dict[str, Any]) -> None:
    """Print the tables of quality and cost, and of the routers' scores where the data has object masks."""
    console = Console()
    if report["untrained_routers"]:
        console.print(f"untrained routers, which skip tokens at random: layers {report['untrained_routers']}")
    if report["quality"] is None:
        console.print(f"no quality: {report['why_no_quality']}")
    else:
        own = "sparse" if "dense" in report else "trained" if "base" in report else "model"
        own = report["baseline"] or own
        columns = {"base": report.get("base"), "dense": report.get("dense"), own: report["quality"]}
        columns["hidden"] = report.get("hidden")
        columns = {name: one for name, one in columns.items() if one is not None}
        columns["real images"] = report["real"]
        if report["published"] is not None and set(report["published"]["figures"]) & set(report["quality"]):
            columns["published"] = report["published"]["figures"]
        figures = [_figures(one) for one in columns.values()]
        rows = [(what, *(one.get(what, "") for one in figures)) for what in figures[0]]
        steps = f"{report['steps']} steps" + ("" if report["variance"] is None else " of ddpm")
        settings = f"{report['samples']} samples, {steps}, guidance {report['guidance']}"
        print_table(console, f"{report['name']}: {settings}", ("", *columns), rows)
        for name, what in COLUMNS.items():
            if name in columns:
                console.print(f"{name}: {what}")
        if report["variance"] is not None:
            console.print(f"variance of ddpm: {report['variance']}")
        if report["baseline"]:
            console.print(f"{own}: the same weights by that baseline")
        if "published" in columns:
            row = report["published"]
            console.print(f"published: {row['name']}, {row['table']}; other data, other training, not ours")
        if "fid" in report["quality"]:
            console.print(_about_fid(report))
        if report.get("not_judged"):
            console.print(f"not judged: {'; '.join(report['not_judged'])}")
        if "why_no_base" in report:
            console.print(f"no base: {report['why_no_base']}")
    if "router_auc" in report:
        header = ("layer", *(f"t = {timestep}" for timestep in report["router_auc_timesteps"]))
        title = "router scores against object masks, AUC (0.5: no relation)"
        layers = enumerate(report["router_auc"])
        print_table(console, title, header, [(str(i), *(f"{auc:.2f}" for auc in row)) for i, row in layers])
    title = f"one forward of {report['batch']} samples, {report['dtype']} on {report['device']}, "
    title += report["baseline"] or f"{report['mean_kept']:.1%} of the tokens kept"
    told = report["published_of_dense"]
    forward = [_cost_row(cost, report["cost"], told if cost[0] in TIMED else {}) for cost in COSTS]
    _print_costs(console, title, report["cost"], forward)
    layers = {name: _means(one["layers"]) for name, one in report["cost"].items()}
    block = [_cost_row(cost, layers, {} if cost[0] in TIMED else told) for cost in COSTS[1:]]
    count = len(report["cost"]["dense"]["layers"]["milliseconds"])
    _print_costs(console, f"one routed block, the mean of {count}", report["cost"], block)
    console.print(f"measured by {report['layers_by']}")
    if "edit" in report:
        told = f"holes of {report['edit']['hole']:.1%} of the tokens"
        if "encoder_milliseconds" in report["edit"]:
            told += f"; once for an edit its encoder, {report['edit']['encoder_milliseconds']:.3g} ms"
        console.print(told)


def _means(layers: dict[str, list[float]]) -> dict[str, float]:
    return {key: statistics.fmean(values) for key, values in layers.items()}


def _cost_row(
    cost: tuple[str, str, str], ways: dict[str, dict[str, float]], told: dict[str, float]
) -> list[str]:
    """A figure of every way, the last as a part of the first, and what the paper has there."""
    key, what, unit = cost
    values = [one[key] for one in ways.values()]
    of_dense = f"{values[-1] / values[0]:.1%}"
    return [what, *(f"{x:.3g} {unit}" for x in values), of_dense, f"{told[key]:.1%}" if key in told else ""]


def _print_costs(console: Console, title: str, ways: Iterable[str], rows: list[list[str]]) -> None:
    """Print them, without the column of the paper where it has nothing to say."""
    names = [{"all_tokens": "routed, all kept"}.get(name, name) for name in ways]
    header = ["", *names, f"{names[-1]} / dense", "published"]
    width = len(header) - (not any(row[-1] for row in rows))
    print_table(console, title, header[:width], [row[:width] for row in rows])


def _about_fid(report: dict[str, Any]) -> str:
    """What FID depends on beside the model."""
    from ..evaluation.networks import FEATURES

    real, made = report["quality"]["fid_reference"], report["samples"]
    text = f"FID: {made} samples against {real} held-out images"
    if min(real, made) <= FEATURES:
        text += f"; of less than {FEATURES} it says little, compare figures of as many"
    return text


def _figures(quality: dict[str, Any]) -> dict[str, str]:
    """The rows of one column, by their heading."""
    rows = {}
    if "frechet" in quality:
        rows["Frechet distance"] = f"{quality['frechet']:.2f}"
        parts = quality["accuracy"] | {name: quality[f"accuracy_{name}"] for name in ("mean", "joint")}
        rows |= {f"accuracy, {name}": f"{part:.1%}" for name, part in parts.items()}
    for key in [key for key in quality if key.endswith("_mse")]:
        rows[f"{key.removesuffix('_mse')}-MSE"] = f"{quality[key]:.4f}"
        for quartile, error in enumerate(quality[f"{key}_by_quartile"]):
            timesteps = f"  timesteps {250 * quartile} to {250 * quartile + 249}"
            levels = f"  noise {quartile / 4:.2f} to {(quartile + 1) / 4:.2f}"
            name = levels if key == "velocity_mse" else timesteps
            rows[name] = "" if error is None else f"{error:.4f}"
    if "hole_error" in quality:
        rows["painted against original, MSE"] = f"{quality['hole_error']:.4f}"
        rows["pixels outside that differ"] = str(quality["outside_differing"])
    if "fid" in quality:
        rows["FID"] = f"{quality['fid']:.2f}"
    for key, name, digits in (("clip_score", "CLIP score", 3), ("hps", "HPSv2", 2)):
        if key in quality:
            error = f" ± {quality[f'{key}_error']:.{digits}f}" if f"{key}_error" in quality else ""
            rows[name] = f"{quality[key]:.{digits}f}{error}"
    return rows
