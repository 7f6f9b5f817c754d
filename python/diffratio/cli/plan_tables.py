"""What `diffratio plan` prints."""

from __future__ import annotations

from itertools import groupby
from statistics import fmean

from rich.table import Table

from ..plan import Plan, PredictionError
from ..plan.cost import Cost

KEPT = (9, 8, 7, 5, 3)
"""Tenths."""
BATCHES = (1, 2, 4, 16)


def steps_table(found: Plan) -> Table:
    """The steps of one routed block beside the dense block's."""
    tokens = found.shape.tokens
    title = f"one block, B={found.batch} N={tokens} D={found.shape.width}, {found.shown_kept} kept"
    table = Table(title=f"{title}\n{found.title}")
    for heading in ("step", "GFLOP", "MB", "us", "bound by", "seconds are", "dense us"):
        words = heading in ("step", "bound by", "seconds are")
        table.add_column(heading, justify="left" if words else "right")
    dense = {cost.step.name: cost for cost in found.dense_costs}
    routed = {cost.step.name: cost for cost in found.routed_costs}
    for name in [*routed, *(name for name in dense if name not in routed)]:
        cost, whole = routed.get(name), dense.get(name)
        own = [f"{cost.step.flops / 1e9:.2f}" if cost.step.flops else "-", f"{cost.step.moved / 1e6:.1f}",
               _micro(cost), cost.bound, cost.origin] if cost else ["-"] * 5  # fmt: skip
        table.add_row(name, *own, _micro(whole))
    table.add_section()
    total, whole = (sum(c.seconds for c in costs.values()) for costs in (routed, dense))
    flops, moved = (sum(getattr(c.step, field) for c in routed.values()) for field in ("flops", "moved"))
    times = f"{total * 1e6:.1f}", "", "", f"{whole * 1e6:.1f}"
    table.add_row("block", f"{flops / 1e9:.2f}", f"{moved / 1e6:.1f}", *times)
    return table


def layers_table(found: Plan) -> Table:
    """All layers, a row for each run of alike ones."""
    table = Table(title="one forward of all blocks")
    for heading in ("layers", "kept", "GFLOP", "ms", "of dense"):
        table.add_column(heading, justify="right")
    for _, alike in groupby(found.layers, key=lambda layer: layer.kept):
        run = list(alike)
        first, last = run[0], run[-1]
        numbers = str(first.layer) if first is last else f"{first.layer}-{last.layer}"
        kept = "dense"
        if first.kept is not None:
            kept = " ".join(f"{count / found.shape.tokens:.2f}" for count in first.kept)
        flops, seconds = (sum(getattr(one, field) for one in run) for field in ("flops", "seconds"))
        table.add_row(numbers, kept, f"{flops / 1e9:.1f}", f"{seconds * 1e3:.3f}",
                      f"{fmean(one.of_dense for one in run):.3f}")  # fmt: skip
    table.add_section()
    for name, flops, seconds in (
        ("all", found.flops, found.seconds),
        ("dense", found.dense_flops, found.dense_seconds),
    ):
        of_dense = seconds / found.dense_seconds
        table.add_row(name, "", f"{flops / 1e9:.1f}", f"{seconds * 1e3:.3f}", f"{of_dense:.3f}")
    return table


def sweep_table(grid: list[list[Plan]]) -> Table:
    """Latency ratios of plans [len(KEPT)][len(BATCHES)]; one that is not between measurements is marked."""
    caption = (
        "~ not all steps lie between measurements" if any("~" in _ratio(p) for r in grid for p in r) else None
    )
    table = Table(title="time of the blocks over the dense blocks' time", caption=caption)
    for heading in ("kept", *(f"batch {batch}" for batch in BATCHES)):
        table.add_column(heading, justify="right")
    for tenths, row in zip(KEPT, grid, strict=True):
        table.add_row(f"{tenths / 10}", *map(_ratio, row))
    return table


def lines(found: Plan, errors: list[PredictionError]) -> list[str]:
    """Totals, prediction errors and the verdict."""
    shown = (found.flop_ratio, found.latency_ratio, found.realised)
    out = ["FLOPs of dense {:.3f}, time of dense {:.3f}, E = {:.3f}".format(*shown)]
    scaled = found.not_measured
    if found.origins != {"predicted"} and scaled > 0.1:
        s = found.shape
        out.append(
            f"{scaled:.0%} of the time is of steps that were not measured near these sizes: `diffratio bench "
            f"operator --batch {found.batch} --tokens {s.tokens} --width {s.width} --heads {s.heads} "
            f"--text {s.text_tokens}` does it"
        )
    if found.compiled_seconds is not None:
        compiled = found.seconds / found.compiled_seconds / len(found.layers)
        out.append(f"time of the compiled dense blocks {compiled:.3f}")
    for error in errors:
        numbers = error.summary()
        of = "without operators of its own ratio" if error.left_out else "prediction error"
        line = (
            f"{of}: {len(error.blocks)} blocks, seconds {numbers['median']:.1%}, worst {numbers['worst']:.1%}"
        )
        if numbers["ratio_median"] is not None:
            line += f"; ratios {numbers['ratio_median']:.3f}, worst {numbers['ratio_worst']:.3f}"
        out.append(line)
    if errors:
        out.append(f"the measured blocks' own times spread by {errors[0].summary()['spread']:.1%}")
    return [*out, found.verdict]


def _ratio(found: Plan) -> str:
    mixed = found.origins - {"measured"} and found.origins != {"predicted"}
    return "~" * bool(mixed) + f"{found.latency_ratio:.2f}"


def _micro(cost: Cost | None) -> str:
    return f"{cost.seconds * 1e6:.1f}" if cost else "-"
