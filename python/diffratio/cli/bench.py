"""`diffratio bench`: the entry to the benchmarks of a checkout; they are in no wheel."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .eval import Device

CHECKOUT = Path(__file__).parents[3]
"""The repository, where this file is in one: diffratio runs from a checkout, or is installed with pip -e."""
NO_CHECKOUT = (
    'diffratio bench: needs a checkout of the repository; clone it, then pip install -e ".[diffusers]" in it'
)


def bench(
    suite: Annotated[
        str, typer.Argument(help="peak, operator, block, training, model or sampling.")
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
    layers: Annotated[int, typer.Option(min=1, help="Blocks, of model and sampling.")] = 28,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps, of sampling.")] = 20,
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
    if not (CHECKOUT / "benchmarks" / "harness").is_dir():
        typer.echo(NO_CHECKOUT, err=True)
        raise typer.Exit(2)
    sys.path.insert(0, str(CHECKOUT))
    from benchmarks.harness.command import measure_suite

    measure_suite(
        suite,
        batches=batch,
        rounds=rounds,
        out=out,
        as_json=as_json,
        dtype=dtype,
        device=device,
        compile_mode=compile_mode,
        kept=kept,
        tokens=tokens,
        width=width,
        heads=heads,
        text=text,
        layers=layers,
        steps=steps,
    )
