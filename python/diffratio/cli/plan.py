"""`diffratio plan`: what compression would cost and save on a device, before anything is trained."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from diffratio_kernels import kept_tokens

from .. import plan as planner
from ..evaluation.flops import TransformerShape
from ..evaluation.results import read
from .output import names_errors, print_table
from .shapes import Height, Model, Preset, TextTokens, Width, shape_of, tenths_of


@names_errors
def plan(
    preset: Preset = None,
    model: Model = None,
    height: Height = None,
    width: Width = None,
    text_tokens: TextTokens = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples (2: one image under guidance).")] = 2,
    kept: Annotated[
        float | None, typer.Option(help="Part of the tokens that every layer keeps, in tenths; 0.7.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="A trained adapter of this model: its ratios.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Predict for one of a100, h100, h200 (h200 when left out).")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Times that `diffratio bench` wrote (.jsonl): peak and operator.")
    ] = None,
    cache_text_kv: Annotated[
        bool, typer.Option(help="The text keys and values are projected once for all steps.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """FLOPs and milliseconds of every layer, and up to how many kept tokens leaving tokens out pays.

    Predicted from a device's datasheet; with --results the seconds lie between measured ones.
    """
    shape = shape_of(preset, model, height, width, text_tokens)
    counts, source = _counts(shape, kept, adapter), _source(device, results)
    found = planner.plan(shape, batch, counts, source, cache_text_kv=cache_text_kv)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    title = f"{shape.layers} blocks, B={batch} N={shape.tokens} D={shape.width}\n{found.title}"
    print_table(Console(width=100), title, ("layers", "kept", "GFLOP", "ms", "of dense"), _rows(found))
    shares = (found.flop_ratio, found.latency_ratio, found.realised)
    typer.echo("FLOPs of dense {:.3f}, time of dense {:.3f}, E = {:.3f}".format(*shares))
    if results and found.not_measured > 0.1:
        sizes = f"--batch {batch} --tokens {shape.tokens} --width {shape.width} --heads {shape.heads}"
        typer.echo(
            f"{found.not_measured:.0%} of the time is of steps that were not measured at these sizes: "
            f"`diffratio bench operator {sizes} --text {shape.text_tokens}` does it"
        )
    typer.echo(found.verdict)


def _counts(shape: TransformerShape, kept: float | None, adapter: Path | None) -> int | list[list[int]]:
    """Kept tokens: one count, or of an adapter the [L][R] table."""
    if kept is not None and adapter is not None:
        raise ValueError("--kept: give either --kept or --adapter")
    if adapter is None:
        return kept_tokens(tenths_of(0.7 if kept is None else kept, "--kept"), shape.tokens)
    from ..routing.adapter_file import CONFIG_NAME, read_config

    try:
        written, config = read_config(adapter / CONFIG_NAME)
    except ValueError as error:
        raise ValueError(f"--adapter: {error}") from error
    names = written["routed_layers"]
    numbers = [name.rpartition(".")[2] for name in names]
    layers = [str(layer) for layer in range(shape.layers)]
    if sorted(numbers) != sorted(layers):
        routed = f"{len(names)} layers, {names[0]} to {names[-1]}" if names else "no layer"
        raise ValueError(f"--adapter: it routes {routed}; the model that is planned has {shape.layers}")
    table = dict(zip(numbers, config.kept_tenths(len(names)), strict=True))
    return [[kept_tokens(n, shape.tokens) for n in table[layer]] for layer in layers]


def _source(device: str | None, results: Path | None) -> planner.Device | planner.Measured:
    if results is not None and device is not None:
        raise ValueError("--device: --results says which device")
    if results is None:
        device = device or "h200"
        if device not in planner.DEVICES:
            raise ValueError(f"--device: {device!r} is not one of {', '.join(planner.DEVICES)}")
        return planner.DEVICES[device]
    if not results.is_file():
        raise ValueError(f"--results: {results} is not a file")
    try:
        return planner.Measured(read(results))
    except ValueError as error:
        raise ValueError(f"--results: {results}: {error}") from error


def _rows(found: planner.Plan) -> Iterator[tuple[str, ...]]:
    """A row for each run of alike layers."""
    for kept, alike in groupby(found.layers, key=lambda layer: layer.kept):
        run = list(alike)
        numbers = "-".join(map(str, dict.fromkeys((run[0].layer, run[-1].layer))))
        parts = " ".join(f"{count / found.shape.tokens:.2f}" for count in kept)
        gflop, ms = sum(one.flops for one in run) / 1e9, sum(one.seconds for one in run) * 1e3
        yield numbers, parts, f"{gflop:.1f}", f"{ms:.3f}", f"{run[0].of_dense:.3f}"
