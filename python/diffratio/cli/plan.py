"""`diffratio plan`: what compression would cost and save on a device, before anything is trained."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from diffratio_kernels import kept_tokens

from .. import plan as planner
from ..evaluation.flops import TransformerShape
from ..evaluation.models import Preset as FamilyPreset
from ..evaluation.results import read
from .output import names_errors, print_table
from .shapes import Frames, Height, Model, Preset, TextTokens, Width, shape_of, tenths_of


@names_errors
def plan(
    preset: Preset = None,
    model: Model = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
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

    Predicted from a device's datasheet; with --results the seconds lie between measured ones. Of families
    beside PixArt and DiT every operator that runs is counted and its seconds are predicted, with --results
    from the measured peaks; memory is that of the weights and of the block that takes most.
    """
    shape, source = shape_of(preset, model, height, width, text_tokens, frames), _source(device, results)
    found = (_counted if isinstance(shape, FamilyPreset) else _planned)(
        shape, batch, kept, adapter, source, cache_text_kv
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    print_table(
        Console(width=100), _title(found), ("layers", "kept", "GFLOP", "ms", "of dense"), _rows(found)
    )
    shares = (found.flop_ratio, found.latency_ratio, found.realised)
    typer.echo("FLOPs of dense {:.3f}, time of dense {:.3f}, E = {:.3f}".format(*shares))
    if found.memory is not None:
        sizes = (size / 2**30 for size in vars(found.memory).values())
        typer.echo(
            "weights {:.2f} GiB; beside them a block takes {:.3f} GiB dense, {:.3f} routed".format(*sizes)
        )
    elif results and found.not_measured > 0.1:
        sizes = f"--batch {batch} --tokens {shape.tokens} --width {shape.width} --heads {shape.heads}"
        typer.echo(
            f"{found.not_measured:.0%} of the time is of steps that were not measured at these sizes: "
            f"`diffratio bench operator {sizes} --text {shape.text_tokens}` does it"
        )
    typer.echo(found.verdict)


def _planned(
    shape: TransformerShape, batch: int, kept: float | None, adapter: Path | None, source, cache_text_kv: bool
) -> planner.Plan:
    """By the formulas of PixArt and DiT."""
    layers = [f"transformer_blocks.{layer}" for layer in range(shape.layers)]
    tenths, rounding = _tenths(kept, adapter, layers)
    counts = [[kept_tokens(n, shape.tokens, rounding) for n in row] for row in tenths]
    return planner.plan(shape, batch, counts, source, cache_text_kv=cache_text_kv)


def _counted(
    preset: FamilyPreset, batch: int, kept: float | None, adapter: Path | None, source, cache_text_kv: bool
) -> planner.Plan:
    """By a count of what a model of another family does."""
    from ..evaluation.flops.counted import count_preset
    from ..plan.counted import plan_counted

    if not cache_text_kv:
        raise ValueError(
            "--no-cache-text-kv: of PixArt alone; this model's text is counted as the model runs it"
        )
    count = count_preset(preset.resized(batch=batch))
    tenths, rounding = _tenths(kept, adapter, count.layers)
    if rounding != "ceil":
        raise ValueError(f"--adapter: its rounding={rounding!r} is counted for PixArt and DiT alone")
    return plan_counted(count, batch, tenths, source)


def _tenths(kept: float | None, adapter: Path | None, layers: Sequence[str]) -> tuple[list[list[int]], str]:
    """Kept tenths [L][R] of layers with these names, one number everywhere or those of an adapter, and how
    counts of them are rounded."""
    if kept is not None and adapter is not None:
        raise ValueError("--kept: give either --kept or --adapter")
    if adapter is None:
        return [[tenths_of(0.7 if kept is None else kept, "--kept")]] * len(layers), "ceil"
    from ..routing.adapter_file import CONFIG_NAME, read_config

    try:
        written, config = read_config(adapter / CONFIG_NAME)
    except ValueError as error:
        raise ValueError(f"--adapter: {error}") from error
    names = written["routed_layers"]
    if sorted(names) != sorted(layers):
        routed = f"{len(names)} layers, {names[0]} to {names[-1]}" if names else "no layer"
        raise ValueError(f"--adapter: it routes {routed}; the model that is planned has {len(layers)}")
    table = dict(zip(names, config.kept_tenths(len(names)), strict=True))
    return [table[layer] for layer in layers], config.rounding


def _title(found: planner.Plan) -> str:
    shape, layers = found.shape, len(found.layers)
    what = f" D={shape.width}" if isinstance(shape, TransformerShape) else f" of a {shape.model}"
    return f"{layers} blocks, B={found.batch} N={shape.tokens}{what}\n{found.title}"


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
    for (kept, _, _), alike in groupby(found.layers, key=lambda one: (one.kept, one.flops, one.seconds)):
        run = list(alike)
        numbers = "-".join(map(str, dict.fromkeys((run[0].layer, run[-1].layer))))
        parts = " ".join(f"{count / found.shape.tokens:.2f}" for count in kept)
        gflop, ms = sum(one.flops for one in run) / 1e9, sum(one.seconds for one in run) * 1e3
        yield numbers, parts, f"{gflop:.1f}", f"{ms:.3f}", f"{run[0].of_dense:.3f}"
