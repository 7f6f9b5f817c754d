"""What `diffratio bench` does: measure one suite, show its rows, append them to a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
import typer
from rich.console import Console

from diffratio.cli.eval import device_of
from diffratio.cli.output import check_folder, make_folder
from diffratio.evaluation.results import append, file_of
from diffratio.progress import progress_bar

from .. import suites
from . import measure as measuring
from .machine import clocks, machine
from .options import Options
from .table import table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_MODES = ("none", "default", "max-autotune-no-cudagraphs")
KEPT = {"operator": [1.0, 0.5, 0.3], "training": [0.5, 0.6, 0.7, 0.9], "sampling": [0.8, 0.5]}
"""Where a suite has a default of its own."""


def measure_suite(
    suite: str,
    *,
    batches: list[int] | None,
    rounds: int,
    out: Path | None,
    as_json: bool,
    dtype: str,
    device: str,
    compile_mode: str,
    kept: list[float] | None,
    **sizes: int,
) -> None:
    """Run `diffratio bench`, whose options these are.

    Args:
        suite: a key of `suites.SUITES`.
        batches: numbers of samples, one after the other; None is 2.
        rounds: interleaved rounds.
        out: folder of the machine's file, to which rows are appended.
        as_json: print rows as JSON instead of tables.
        dtype, device, compile_mode: "auto", or one of those that the command lists.
        kept: kept parts of the tokens, in tenths; None is the suite's default.
        sizes: the other fields of `Options`.

    Raises:
        typer.BadParameter: a wrong argument; the message names it.
        typer.Exit: 1 where one of our kernels was refused, 130 where the run was stopped.
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
        kept=_kept(kept or KEPT.get(suite) or list(Options.kept)),
        compile_mode=_compile_mode(compile_mode, gpu),
        **sizes,
    )
    if options.width % options.heads or options.width // options.heads % 8:
        raise typer.BadParameter(f"width={options.width} must be heads={options.heads} times a multiple of 8")
    facts = machine() | {"compile_mode": options.compile_mode}
    file = None if out is None else file_of(out, facts["device"])
    console = Console() if Console().is_terminal else Console(width=140)
    measured, failed, stopped = 0, {}, False
    for size in dict.fromkeys(batches or [options.batch]):
        found = []
        try:
            chosen = list(suites.subjects(suite, replace(options, batch=size)))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if out is not None:
            make_folder(out)
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
