"""`plan`: the FLOPs and seconds of every layer, and up to which kept count compression pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean

from ..flops import TransformerShape
from .cost import Cost, Predicted
from .device import Device
from .measured import Measured
from .result import LayerPlan, Plan
from .steps import Sizes, dense_steps, routed_steps

Source = Device | Measured
Kept = int | None | Sequence[int | None | Sequence[int]]
"""Kept tokens of every layer, of each layer, or of each layer and region; None is a layer not routed."""


def plan(
    shape: TransformerShape, batch: int, kept: Kept, source: Source, *, cache_text_kv: bool = True
) -> Plan:
    """What one forward of the blocks costs, and whether leaving tokens out pays.

    Args:
        shape: the transformer and its tokens N.
        batch: samples in the forward; classifier-free guidance doubles it.
        kept: tokens kept, 0 to N: one count, one of each layer, or [L][R] of equally long regions. None, or
            None for a layer, is the dense block.
        source: a `Device` (seconds are predicted) or `Measured` (from a results file).
        cache_text_kv: the text keys and values are projected once for all steps, on both sides.

    Raises:
        ValueError: an impossible argument; the message starts with its name.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch: {batch!r} must be a positive integer")
    table = _table(shape, kept)
    compiled = source.compiled_dense if isinstance(source, Measured) else lambda sizes: None
    source = Predicted(source) if isinstance(source, Device) else source
    sizes = Sizes.of(shape, batch, shape.tokens, source.itemsize)
    dense = tuple(source.cost(step) for step in dense_steps(sizes, cache_text_kv, source.is_one_kernel))
    dense_seconds = sum(cost.seconds for cost in dense)

    @cache
    def routed(count: int) -> tuple[Cost, ...]:
        sizes = Sizes.of(shape, batch, count, source.itemsize)
        return tuple(source.cost(step) for step in routed_steps(sizes, cache_text_kv, source.is_one_kernel))

    def layer(number: int, counts: tuple[int, ...] | None) -> LayerPlan:
        blocks = [dense] if counts is None else [routed(count) for count in counts]
        flops, seconds = (fmean(sum(values) for values in pair) for pair in (
            [[cost.step.flops for cost in block] for block in blocks],
            [[cost.seconds for cost in block] for block in blocks],
        ))  # fmt: skip
        return LayerPlan(number, counts, flops, seconds, seconds / dense_seconds)

    everything = [count for counts in table if counts for count in counts] or [shape.tokens]
    shown = max(everything, key=everything.count)
    return Plan(
        source.title,
        shape,
        batch,
        tuple(layer(number, counts) for number, counts in enumerate(table)),
        shown,
        routed(shown),
        dense,
        break_even(lambda count: sum(cost.seconds for cost in routed(count)), shape.tokens, dense_seconds),
        compiled(sizes),
    )


def break_even(seconds: Callable[[int], float], tokens: int, limit: float) -> int:
    """The largest kept count up to which a routed block takes no longer than `limit`: N, or 0 for none.

    Measured times need not rise with the count: the first of 16 counts that takes longer ends the search, and
    bisection finds the place before it.
    """
    steps = sorted({-(-tokens * part // 16) for part in range(1, 17)})
    high = next((count for count in steps if seconds(count) > limit), None)
    if high is None:
        return tokens
    low = max((count for count in steps if count < high), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= limit else (low, middle)
    return low


def _table(shape: TransformerShape, kept: Kept) -> list[tuple[int, ...] | None]:
    if kept is None or isinstance(kept, int):
        kept = [kept] * shape.layers
    if not isinstance(kept, Sequence) or isinstance(kept, str):
        raise ValueError(f"kept: {kept!r} is neither a count nor a list")
    if len(kept) != shape.layers:
        raise ValueError(f"kept: {len(kept)} rows for {shape.layers} layers")
    table = []
    for row in kept:
        counts = None if row is None else tuple(row) if isinstance(row, Sequence) else (row,)
        for count in counts if counts is not None else ():
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= shape.tokens:
                raise ValueError(f"kept: {count!r} is not an integer from 0 to {shape.tokens}")
        if counts == ():
            raise ValueError("kept: a layer needs at least one region")
        table.append(counts)
    return table
