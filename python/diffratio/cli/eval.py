"""`diffratio eval`: quality, latency, FLOPs and memory of a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

COLUMNS = {
    "base": "the model that the run started from",
    "dense": "the trained weights with routing off",
    "sparse": "the same weights, routed as learned",
    "trained": "what the run made of it",
}
"""Models that quality is told of, beside each other."""

Source = Annotated[
    str, typer.Argument(help="A run, its final or checkpoint-N, a model, an adapter, digits or shapes.")
]
Checkpoint = Annotated[int | None, typer.Option(min=0, help="A checkpoint of the run. Default: its end.")]
Base = Annotated[str | None, typer.Option(help="The model of an adapter that lies alone.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Default: the run's own.")]
Seed = Annotated[int, typer.Option(help="Seed of the starting noise.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of DPM-Solver++.")]
Guidance = Annotated[float, typer.Option(help="Weight of classifier-free guidance; 1 is none.")]
Device = Annotated[str, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]


def eval(
    path: Source,
    checkpoint: Checkpoint = None,
    base: Base = None,
    dataset: Dataset = None,
    samples: Annotated[int, typer.Option(min=2, help="Samples that quality is judged on.")] = 512,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 2.0,
    batch: Annotated[int, typer.Option(min=1, help="Samples of the forward that is timed.")] = 16,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = "auto",
    fid_weights: Annotated[
        Path | None, typer.Option(help="Inception file of torch-fidelity: adds FID.")
    ] = None,
    clip_weights: Annotated[
        Path | None, typer.Option(help="ViT-B-32 of open_clip: adds the CLIP score.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge a model: Frechet distance, attribute accuracy, v-MSE; latency, FLOPs, peak memory."""
    if dtype not in DTYPES:
        raise typer.BadParameter(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    from ..evaluation.evaluate import evaluate
    from ..evaluation.quality import SampleSettings

    options = {"checkpoint": checkpoint, "base": base, "dataset": dataset, "dtype": DTYPES[dtype]}
    target = load(path, device, **options)
    try:
        report = evaluate(
            target,
            SampleSettings(samples, seed, steps, guidance),
            batch=batch,
            fid_weights=fid_weights,
            clip_weights=clip_weights,
            progress=not as_json,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        print_report(report)


def load(path: str, device: str, **options):
    """``load_target``; what is wrong with the arguments becomes the command line's own error."""
    from ..evaluation.target import load_target

    try:
        return load_target(path, device=device_of(device), **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def device_of(option: str) -> str:
    """cpu or cuda, from the option ``--device``."""
    there = torch.cuda.is_available()
    if option not in ("auto", "cpu", "cuda") or (option == "cuda" and not there):
        raise typer.BadParameter(f"device={option!r} must be cpu, or cuda where there is one")
    return ("cuda" if there else "cpu") if option == "auto" else option


def quality_columns(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of each column of the table, by its name."""
    own = "sparse" if "dense" in report else "trained" if "base" in report else "model"
    columns = {"base": report.get("base"), "dense": report.get("dense"), own: report["quality"]}
    return {name: one for name, one in columns.items() if one is not None} | {"real images": report["real"]}


def quality_rows(columns: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of (what, its figure in every column, empty where it has none)."""
    told = [_figures(one) for one in columns]
    return [(what, *(one.get(what, "") for one in told)) for what in told[0]]


def _figures(quality: dict[str, Any]) -> dict[str, str]:
    """What one column says in each row."""
    rows = {}
    if "frechet" in quality:
        rows["Frechet distance"] = f"{quality['frechet']:.2f}"
        parts = quality["accuracy"] | {name: quality[f"accuracy_{name}"] for name in ("mean", "joint")}
        rows |= {f"accuracy, {name}": f"{part:.1%}" for name, part in parts.items()}
    for key in [key for key in quality if key.endswith("_mse")]:
        rows[f"{key.removesuffix('_mse')}-MSE"] = f"{quality[key]:.4f}"
        for quartile, error in enumerate(quality[f"{key}_by_quartile"]):
            rows[f"  timesteps {250 * quartile} to {250 * quartile + 249}"] = f"{error:.4f}"
    return rows | {name: f"{quality[name]:.3f}" for name in ("fid", "clip_score") if name in quality}


def auc_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of (layer, AUC at each timestep)."""
    return [
        (str(layer), *(f"{value:.2f}" for value in row)) for layer, row in enumerate(report["router_auc"])
    ]


def cost_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of (what, dense, all tokens, sparse, sparse / dense)."""
    rows = []
    for key, what, unit in (
        ("gflop", "computation", "GFLOP"),
        ("milliseconds", "latency", "ms"),
        ("peak_megabytes", "peak memory", "MB"),
    ):
        dense, every, sparse = (report["cost"][name][key] for name in ("dense", "all_tokens", "sparse"))
        rows.append((what, *(f"{x:.3g} {unit}" for x in (dense, every, sparse)), f"{sparse / dense:.1%}"))
    return rows


def print_report(report: dict[str, Any]) -> None:
    """Two tables: quality and cost."""
    console = Console()
    if report["untrained_routers"]:
        console.print(f"untrained routers, which skip tokens at random: layers {report['untrained_routers']}")
    if report["quality"] is None:
        console.print(f"no quality: {report['why_no_quality']}")
    else:
        settings = f"{report['samples']} samples, {report['steps']} steps, guidance {report['guidance']}"
        columns = quality_columns(report)
        title = f"{report['name']}: {settings}"
        _print(console, title, ("", *columns), quality_rows(list(columns.values())))
        for name, what in COLUMNS.items():
            if name in columns:
                console.print(f"{name}: {what}")
        if "why_no_base" in report:
            console.print(f"no base: {report['why_no_base']}")
    if "router_auc" in report:
        header = ("layer", *(f"t = {timestep}" for timestep in report["router_auc_timesteps"]))
        title = "router scores against object masks, AUC (0.5: no relation)"
        _print(console, title, header, auc_rows(report))
    title = f"one forward of {report['batch']} samples, {report['dtype']} on {report['device']}, "
    title += f"{report['mean_kept']:.1%} of the tokens kept"
    _print(console, title, ("", "dense", "routed, all kept", "sparse", "sparse / dense"), cost_rows(report))


def _print(console: Console, title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*header, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
