"""`diffratio bench`: one routed block against the dense block and the authors' eager code."""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def table(result) -> Table:
    """Latency, memory and how closely latency follows FLOPs, of a `BlockBenchmark`."""
    shape = result.shape
    title = (
        f"one block, B={shape['batch']} N={shape['tokens']} D={shape['width']} heads={shape['heads']} "
        f"text={shape['text']} {result.dtype}, {result.threads} threads, medians of {result.rounds}"
    )
    out = Table(title=title)
    for column in (
        "",
        "kept",
        "ms",
        "vs dense diffusers",
        "latency ratio",
        "FLOP ratio",
        "latency / FLOP",
        "peak MiB",
    ):
        out.add_column(column, justify="left" if not column else "right")
    dense = result.row("diffusers dense", 1.0)["seconds"]
    ours = result.row("mod_block", 1.0)
    for row in result.rows:
        own = row["name"] == "mod_block"
        latency = row["seconds"] / ours["seconds"]
        flop = row["flops"] / ours["flops"]
        out.add_row(
            row["name"],
            f"{row['kept']:.1f}",
            f"{row['seconds'] * 1e3:.2f}",
            f"{row['seconds'] / dense:.3f}",
            f"{latency:.3f}" if own else "",
            f"{flop:.3f}" if own else "",
            f"{latency / flop:.3f}" if own else "",
            f"{row['peak_bytes'] / 2**20:.1f}",
        )
    return out


def training_table(result) -> Table:
    """Two bins against the dense block, forward and backward, of a `BlockBenchmark` for training."""
    shape = result.shape
    title = (
        f"forward + backward, B={shape['batch']} N={shape['tokens']} D={shape['width']} "
        f"heads={shape['heads']} text={shape['text']} {result.dtype}, {result.threads} threads, "
        f"medians of {result.rounds}"
    )
    out = Table(title=title)
    for column in ("", "bins", "ms", "of dense", "FLOPs of dense", "time / FLOPs", "peak MiB"):
        out.add_column(column, justify="left" if not column else "right")
    dense = result.rows[0]
    for row in result.rows:
        latency, flop = (row[name] / dense[name] for name in ("seconds", "flops"))
        out.add_row(
            row["name"],
            f"{row['kept_small']:.1f} / {row['kept']:.1f}" if row["kept_small"] else "1.0",
            f"{row['seconds'] * 1e3:.1f}",
            f"{latency:.3f}",
            f"{flop:.3f}",
            f"{latency / flop:.3f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
        )
    return out


def bench(
    batch: Annotated[int, typer.Option(min=1, help="Samples (2: one image under guidance).")] = 2,
    tokens: Annotated[int, typer.Option(min=1, help="Image tokens N.")] = 1024,
    width: Annotated[int, typer.Option(min=8, help="Width D.")] = 1152,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 16,
    text: Annotated[int, typer.Option(min=1, help="Text tokens.")] = 120,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 15,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    training: Annotated[bool, typer.Option(help="Forward and backward with two bins.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time one block dense, routed by the authors' eager code, and routed by mod_block."""
    from ..bench import run_block_benchmark, run_training_benchmark

    if dtype not in DTYPES:
        raise typer.BadParameter(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"device={device!r} must be cpu, or cuda where there is one")
    if width % heads or width // heads % 8:
        raise typer.BadParameter(f"width={width} must be heads={heads} times a multiple of 8")
    run, show = (run_training_benchmark, training_table) if training else (run_block_benchmark, table)
    result = run(
        batch,
        tokens,
        width,
        heads,
        text,
        rounds=rounds,
        dtype=DTYPES[dtype],
        device=device,
        progress=not as_json,
    )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        Console(width=140).print(show(result))
