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
    """Judge a model: Frechet distance, attribute accuracy, prediction error; latency, FLOPs, peak memory."""
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


def quality_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of (what, this model, real images)."""
    quality, real = report["quality"], report["real"]
    rows = []
    if "frechet" in quality:
        rows.append(("Frechet distance", f"{quality['frechet']:.2f}", f"{real['frechet']:.2f}"))
        pairs = [(name, quality["accuracy"][name], real["accuracy"][name]) for name in quality["accuracy"]]
        pairs += [(name, quality[f"accuracy_{name}"], real[f"accuracy_{name}"]) for name in ("mean", "joint")]
        rows += [(f"accuracy, {name}", f"{ours:.1%}", f"{theirs:.1%}") for name, ours, theirs in pairs]
    kind = next(kind for kind in ("velocity", "noise", "image") if f"{kind}_error" in quality)
    rows.append((f"{kind} error", f"{quality[f'{kind}_error']:.4f}", ""))
    for quartile, error in enumerate(quality[f"{kind}_error_by_quartile"]):
        rows.append((f"  timesteps {250 * quartile} to {250 * quartile + 249}", f"{error:.4f}", ""))
    rows += [(name, f"{quality[name]:.3f}", "") for name in ("fid", "clip_score") if name in quality]
    return rows


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
        _print(console, f"{report['name']}: {settings}", ("", "model", "real images"), quality_rows(report))
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
