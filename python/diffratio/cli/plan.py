"""`diffratio plan`: what compression would cost and save on a device, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import plan as planner
from ..flops import PRESETS, TransformerShape, kept_tokens
from .plan_tables import BATCHES, KEPT, layers_table, lines, steps_table, sweep_table
from .shapes import shape_of

WIDTH = 100


def plan(
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = None,
    model: Annotated[Path | None, typer.Option(help="A diffusers model: folder or config.json.")] = None,
    height: Annotated[int | None, typer.Option(help="Latent height: pixels / 8 with most VAEs.")] = None,
    width: Annotated[int | None, typer.Option(help="Latent width; the height when left out.")] = None,
    text_tokens: Annotated[
        int | None, typer.Option(help="Text tokens per sample; 120 (the paper's) when left out.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples (2: one image under guidance).")] = 2,
    kept: Annotated[
        float | None, typer.Option(help="Part of the tokens that every layer keeps, in tenths; 0.7.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A trained adapter: its ratios of each layer and region.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Predict for one of a100, h100, h200 (h200 when left out).")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Times that `diffratio bench` wrote (.jsonl), for that device.")
    ] = None,
    cache_text_kv: Annotated[
        bool, typer.Option(help="The text keys and values are projected once for all steps.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """FLOPs and milliseconds of every layer, and from how few kept tokens on leaving tokens out pays.

    With --results the seconds lie between measured ones, and the error of predicted blocks is printed;
    without it everything is predicted from the device's datasheet.
    """
    try:
        shape = shape_of(preset, model, height, width, text_tokens)
        counts = _counts(shape, kept, adapter)
        source, rows = _source(device, results)
        found = planner.plan(shape, batch, counts, source, cache_text_kv=cache_text_kv)
        grid = [
            [
                planner.plan(
                    shape, size, kept_tokens(tenths, shape.tokens), source, cache_text_kv=cache_text_kv
                )
                for size in BATCHES
            ]
            for tenths in KEPT
        ]
        errors = [planner.prediction_error(rows, left_out) for left_out in (False, True)] if rows else []
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    errors = [error for error in errors if error is not None]
    if as_json:
        ratios = [[one.latency_ratio for one in row] for row in grid]
        sweep = {"kept": [tenths / 10 for tenths in KEPT], "batches": BATCHES, "latency_ratios": ratios}
        report = found.to_dict() | {"sweep": sweep, "prediction_error": [e.to_dict() for e in errors]}
        typer.echo(json.dumps(report, indent=2))
        return
    console = Console(width=WIDTH)
    console.print(steps_table(found), layers_table(found), sweep_table(grid))
    for line in lines(found, errors):
        console.print(line, highlight=False)


def _counts(shape: TransformerShape, kept: float | None, adapter: Path | None) -> object:
    """Kept tokens: one count, or of an adapter the [L][R] table with None for a layer it does not route."""
    if kept is not None and adapter is not None:
        raise ValueError("--kept: give either --kept or --adapter")
    if adapter is None:
        kept = 0.7 if kept is None else kept
        tenths = round(10 * kept)
        if abs(10 * kept - tenths) > 1e-9 or not 0 <= tenths <= 10:
            raise ValueError(f"--kept: {kept} is not one of 0, 0.1, ... 1")
        return kept_tokens(tenths, shape.tokens)
    from ..adapter_file import CONFIG_NAME, read_config

    try:
        written, config = read_config(adapter / CONFIG_NAME)
    except ValueError as error:
        raise ValueError(f"--adapter: {error}") from error
    names = written["routed_layers"]
    table: list = [None] * shape.layers
    for name, row in zip(names, config.kept_tenths(len(names)), strict=True):
        number = name.rpartition(".")[2]
        if not number.isdecimal() or int(number) >= shape.layers:
            raise ValueError(f"--adapter: it routes {name}, the model has {shape.layers} layers")
        table[int(number)] = [kept_tokens(tenths, shape.tokens) for tenths in row]
    return table


def _source(device: str | None, results: Path | None) -> tuple[planner.Device | planner.Measured, list[dict]]:
    """Measured times and the rows that these are from; a device, where nothing was measured."""
    if results is not None and device is not None:
        raise ValueError("--device: --results says which device")
    if results is None:
        device = device or "h200"
        if device not in planner.DEVICES:
            raise ValueError(f"--device: {device!r} is not one of {', '.join(planner.DEVICES)}")
        results = planner.shipped(device)
        if results is None:
            return planner.DEVICES[device], []
    from ..bench.record import read

    if not results.is_file():
        raise ValueError(f"--results: {results} is not a file")
    try:
        rows = read(results)
        return planner.Measured(rows), rows
    except ValueError as error:
        raise ValueError(f"--results: {results}: {error}") from error
