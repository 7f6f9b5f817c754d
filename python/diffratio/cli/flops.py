"""`diffratio flops`: count a model's FLOPs, or compare the count with the paper's."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from diffratio_kernels import kept_tokens

from ..evaluation.flops import METHODS, FlopsReport, TransformerShape, dsap_kept, rows, transformer_flops
from ..evaluation.flops.baselines import baseline_kept
from ..evaluation.flops.count import CONVENTIONS
from ..evaluation.models import Preset as FamilyPreset
from .output import Baseline, names_errors, table
from .shapes import Frames, Height, Model, Preset, TextTokens, Width, read_json, shape_of, tenths_of


@names_errors
def flops(
    preset: Preset = None,
    model: Model = None,
    compression: Annotated[
        float | None, typer.Option(help="Share of tokens left out, in tenths: 0.3 keeps ceil(0.7 N).")
    ] = None,
    kept_table: Annotated[
        Path | None,
        typer.Option(help="JSON list with the kept tenths of each layer: a number or a list (regions)."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(METHODS)}; mod where tokens are left out.")
    ] = None,
    baseline: Baseline = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    text_tokens: TextTokens = None,
    batch: Annotated[int, typer.Option(help="Samples per forward; guidance doubles it.")] = 1,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's FLOPs column beside ours.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count the FLOPs of one forward: every matrix product ("true"), and as the paper counts them.

    A FLOP is half a multiply-accumulate. The paper's convention leaves the attention products out; it is that
    of PixArt and DiT alone. Models of other families are run on the meta device, and what runs is counted.
    """
    if paper:
        given = (preset, model, compression, kept_table, method, baseline, height, width, frames, text_tokens)
        if any(value is not None for value in given) or batch != 1:
            raise ValueError("--paper counts the paper's own model; add no option but --json")
        _print_paper(as_json)
        return
    if baseline is not None and any(value is not None for value in (compression, kept_table, method)):
        raise ValueError("--baseline: it says what is kept; add no --compression, --kept-table or --method")
    shape = shape_of(preset, model, height, width, text_tokens, frames)
    if isinstance(shape, FamilyPreset):
        for option, value in (("--method", method), ("--baseline", baseline)):
            if value not in (None, "mod"):
                raise ValueError(f"{option}: {value!r} is counted for PixArt and DiT alone")
        _count_family(shape.resized(batch=batch), _tenths(compression, kept_table), as_json)
        return
    if baseline is not None:
        kept, method = baseline_kept(baseline, shape)
    else:
        kept, method = _kept(shape, compression, kept_table, method)
    asked = {"batch": batch, "method": method}
    counts = {c: transformer_flops(shape, kept, convention=c, **asked) for c in CONVENTIONS}
    dense = {c: transformer_flops(shape, convention=c, batch=batch) for c in CONVENTIONS}
    if as_json:
        found = {c: one.as_dict() | {"saving": one.saving(dense[c])} for c, one in counts.items()}
        typer.echo(json.dumps({"shape": asdict(shape), "kept": kept, **found}, indent=2))
        return
    _print_counts(shape, counts, dense)


def _kept(
    shape: TransformerShape, compression: float | None, kept_table: Path | None, method: str | None
) -> tuple[int | list[list[int]] | None, str]:
    """The kept tokens that the options ask for, and the method by name."""
    tenths = _tenths(compression, kept_table)
    if isinstance(tenths, list):
        return [[kept_tokens(n, shape.tokens) for n in row] for row in tenths], method or "mod"
    if method in (None, "dense") and tenths == 10:
        return None, "dense"
    if method == "atedm":
        return dsap_kept(shape, kept_tokens(tenths, shape.tokens, "floor")), method
    return kept_tokens(tenths, shape.tokens), method or "mod"


def _tenths(compression: float | None, kept_table: Path | None) -> int | list[list[int]]:
    """The tenths that are kept: everywhere, or in each layer and region."""
    if compression is not None and kept_table is not None:
        raise ValueError("--kept-table: give either --kept-table or --compression")
    if kept_table is None:
        return 10 - tenths_of(compression or 0, "--compression")
    tenths = read_json(kept_table, "--kept-table")
    if not isinstance(tenths, list):
        raise ValueError(f"--kept-table: {kept_table} holds no list")
    rows = [row if isinstance(row, list) else [row] for row in tenths]
    for one in (one for row in rows for one in row):
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= 10:
            raise ValueError(f"--kept-table: {one!r} is not an integer from 0 to 10")
    return rows


def _count_family(preset: FamilyPreset, tenths: int | list[list[int]], as_json: bool) -> None:
    """Count a model of another family, dense and as it is routed."""
    from ..evaluation.flops.counted import count_preset

    used = {n for row in tenths for n in row} if isinstance(tenths, list) else {tenths}
    count, batch = count_preset(preset, used), preset.size.batch
    layers = len(count.blocks)
    if isinstance(tenths, list) and (len(tenths) != layers or len({*map(len, tenths)}) != 1 or not tenths[0]):
        raise ValueError(f"--kept-table: {layers} layers need a row each, all of one length")
    dense, routed = (
        FlopsReport("true", method, batch, {part: round(flops) for part, flops in count.parts(kept).items()})
        for method, kept in (("dense", None), ("mod", tenths))
    )
    report = dense if tenths == 10 else routed
    if as_json:
        found = report.as_dict() | {"saving": report.saving(dense)}
        about = {"model": count.name, "size": asdict(preset.size), "layers": count.layers,
                 "tokens": count.tokens, "kept_tenths": tenths, "weight_bytes": count.weights}  # fmt: skip
        typer.echo(json.dumps(about | {"true": found}, indent=2))
        return
    title = (
        f"{count.name}: {layers} routed blocks, {count.tokens} tokens, {preset.size.text} text, batch {batch}"
    )
    shown = table(title, ("part", "GFLOP", "share", "dense GFLOP"), ())
    for part, flops in report.parts.items():
        share = f"{flops / report.total:.1%}"
        shown.add_row(part, _giga(flops), share, _giga(dense.parts.get(part, 0)))
    shown.add_section()
    shown.add_row("total", _giga(report.total), "100.0%", _giga(dense.total), style="bold")
    if report is not dense:
        shown.add_row("saving", f"{report.saving(dense):.2%}", "", "")
    Console().print(shown)


def _print_counts(
    shape: TransformerShape, counts: dict[str, FlopsReport], dense: dict[str, FlopsReport]
) -> None:
    true, thop = counts.values()
    title = f"{true.method}: {shape.tokens} tokens, {shape.text_tokens} text, batch {true.batch}"
    shown = table(title, ("part", "true GFLOP", "share", "paper's GFLOP"), ())
    for part in dict.fromkeys([*true.parts, *thop.parts]):
        value = true.parts.get(part, 0)
        share = f"{value / true.total:.1%}" if value else "-"
        shown.add_row(part, _giga(value), share, _giga(thop.parts.get(part, 0)))
    shown.add_section()
    shown.add_row("total", _giga(true.total), "100.0%", _giga(thop.total), style="bold")
    if true.method != "dense":
        shown.add_row("dense", _giga(dense["true"].total), "", _giga(dense["paper"].total))
        savings = {c: f"{one.saving(dense[c]):.2%}" for c, one in counts.items()}
        shown.add_row("saving", savings["true"], "", savings["paper"])
    Console().print(shown)


def _giga(value: float) -> str:
    return f"{value / 1e9:,.3f}" if value else "-"


def _print_paper(as_json: bool) -> None:
    compared = rows()
    if as_json:
        typer.echo(json.dumps([asdict(row) | {"error": row.error} for row in compared], indent=2))
        return
    header = ("method", "paper, 16", "ours, 16", "paper, 128", "ours, 128", "true saving", "status", "note")
    caption = "exact: every printed digit; plausible: our reading, close; fitted: chosen to agree"
    title = "Table 1 of the paper: GFLOPs of PixArt at 512 px, batch 16 and 128"
    shown = table(title, header, (), caption=caption)
    for column in shown.columns[-2:]:
        column.justify = "left"
    for row in compared:
        pairs = zip(row.published, row.ours, strict=True)
        figures = [f"{figure:.1f}" for pair in pairs for figure in pair]
        name = f"{row.name} {row.compression}"
        shown.add_row(name, *figures, f"{row.true_saving:.2%}", row.status, row.note)
    Console(width=150).print(shown)
