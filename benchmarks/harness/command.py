"""What `diffratio bench` does: measure one suite, show its rows, append them to a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from diffratio.cli.eval import Device, device_of
from diffratio.cli.output import check_folder
from diffratio.evaluation.results import append, file_of
from diffratio.progress import progress_bar

from .. import suites
from . import measure as measuring
from .machine import clocks, machine
from .options import Options
from .table import table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_MODES = ("none", "default", "max-autotune-no-cudagraphs")
KEPT = {
    "operator": [1.0, 0.5, 0.3],
    "family": [1.0, 0.5, 0.3],
    "training": [0.5, 0.6, 0.7, 0.9],
    "inpaint": [0.7],
    "sampling": [0.8, 0.5],
}
"""Where a suite has a default of its own."""


def bench(
    suite: Annotated[
        str, typer.Argument(help="peak, operator, block, family, training, model, inpaint or sampling.")
    ] = "block",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Samples; repeatable. Default: 2.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Image tokens N.")] = 1024,
    kept: Annotated[
        list[float] | None,
        typer.Option(help="Parts of the tokens that are kept, in tenths; repeatable. Default: by the suite."),
    ] = None,
    width: Annotated[int, typer.Option(min=8, help="Width D.")] = 1152,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 16,
    text: Annotated[int, typer.Option(min=1, help="Text tokens.")] = 120,
    layers: Annotated[int, typer.Option(min=1, help="Blocks, of model, inpaint and sampling.")] = 28,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps, of sampling.")] = 20,
    family: Annotated[list[str] | None, typer.Option(help="Blocks of the suite family; repeatable.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Beside block, model and sampling: tome:attn|mlp|all:RATIO, atedm:RATIO[:copy|residual], "
            "mod:RATIO[:ceil|floor]; repeatable. Default: ToMe beside the block."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; slow subjects take fewer.")] = 30,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16. Default: bf16 on a GPU, else fp32.")] = "auto",
    device: Device = "auto",
    compile_mode: Annotated[
        str,
        typer.Option(
            help="Of compiled peers: none, default, max-autotune-no-cudagraphs. On a GPU: default, else none."
        ),
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder with a file per machine; rows are appended.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON, one subject a line.")] = False,
) -> None:
    """Measure one suite in turns: candidates within the error budget only, ratios beside absolute figures.

    Needs a checkout of the repository: diffratio installed there with pip install -e, or run from it. A
    candidate that raises or is outside of the budget is a row without times, "refused" with the reason, and
    the others go on. Exit code 1: a kernel of ours was refused that could have run here.
    """
    if suite not in suites.SUITES:
        raise typer.BadParameter(f"suite={suite!r} must be one of {', '.join(suites.SUITES)}")
    if out is not None:
        check_folder(out)
    device = device_of(device)
    gpu = device == "cuda"
    options = Options(
        device=device,
        dtype=_dtype(dtype, gpu),
        tokens=tokens,
        kept=_kept(kept or KEPT.get(suite) or list(Options.kept)),
        width=width,
        heads=heads,
        text=text,
        layers=layers,
        steps=steps,
        compile_mode=_compile_mode(compile_mode, gpu),
        families=tuple(family or ()),
        baselines=tuple(baseline or ()),
    )
    if baseline and suite not in ("block", "model", "sampling"):
        raise typer.BadParameter(f"baseline: not of suite {suite}; of block, model and sampling")
    if options.width % options.heads or options.width // options.heads % 8:
        raise typer.BadParameter(f"width={options.width} must be heads={options.heads} times a multiple of 8")
    facts = machine() | {"compile_mode": options.compile_mode}
    file = None if out is None else file_of(out, facts["device"])
    console = Console() if Console().is_terminal else Console(width=140)
    measured, failed, stopped = 0, {}, False
    for size in dict.fromkeys(batch or [options.batch]):
        found = []
        try:
            chosen = list(suites.subjects(suite, replace(options, batch=size)))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if out is not None:
            _make_folder(out)
        try:
            for subject in progress_bar(chosen, show=not as_json, desc=suite, leave=False):
                before = clocks()
                rows = measuring.measure(subject, device, rounds, progress=not as_json)
                run = facts | {"clocks": {"before": before, "after": clocks()}} if before else facts
                if file is not None:
                    append(file, run, rows)
                if as_json:
                    typer.echo(json.dumps({**run, "rows": rows}))
                found += rows
                failed |= {f"{row['name']}: {row['refused']}": None for row in rows if "failed" in row}
                measured += 1
                if gpu:
                    torch.cuda.empty_cache()
        except KeyboardInterrupt:
            stopped = True
        if found and not as_json:
            console.print(table(found, gpu))
        if stopped:
            break
    kept_in = "not stored (--out)" if file is None else f"appended to {file}"
    typer.echo(f"{'stopped: ' * stopped}{measured} subjects measured, {kept_in}", err=True)
    for reason in failed:
        typer.echo(f"failed: {reason}", err=True)
    if stopped or failed:
        raise typer.Exit(130 if stopped else 1)


def _make_folder(out: Path) -> None:
    """Before anything is measured; `check_folder` has found nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"out={str(out)!r}: {error.strerror}") from None


def _dtype(name: str, gpu: bool) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if gpu else torch.float32
    if name not in DTYPES:
        raise typer.BadParameter(f"dtype={name!r} must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _compile_mode(name: str, gpu: bool) -> str | None:
    if name == "auto":
        return "default" if gpu else None
    if name not in COMPILE_MODES:
        raise typer.BadParameter(f"compile_mode={name!r} must be one of {', '.join(COMPILE_MODES)}")
    return None if name == "none" else name


def _kept(parts: list[float]) -> tuple[float, ...]:
    for part in parts:
        if not 0 < part <= 1 or abs(10 * part - round(10 * part)) > 1e-9:
            raise typer.BadParameter(f"kept={part} must be a number of tenths from 0.1 to 1.0")
    return tuple(dict.fromkeys(round(part, 1) for part in parts))
