"""`plan`: the FLOPs and seconds of every layer, and up to which kept count compression pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from math import lcm
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
    def routed(block: RoutedBlock) -> tuple[Cost, ...]:
        sizes = Sizes.of(shape, batch, block.kept, source.itemsize)
        steps = routed_steps(sizes, cache_text_kv, source.is_one_kernel, block.scored, block.scores_next)
        return tuple(source.cost(step) for step in steps)

    def alike(count: int) -> float:
        blocks = routed_blocks([(count,)] * shape.layers, source.makes_next_logits)
        return sum(cost.seconds for block in chain(*blocks) for cost in routed(block))

    layers = []
    of_layers = routed_blocks(table, source.makes_next_logits)
    for number, (counts, blocks) in enumerate(zip(table, of_layers, strict=True)):
        costs = [routed(block) for block in blocks] or [dense]
        flops = fmean(sum(cost.step.flops for cost in block) for block in costs)
        seconds = fmean(sum(cost.seconds for cost in block) for block in costs)
        layers.append(LayerPlan(number, counts, flops, seconds, seconds / dense_seconds))
    everything = list(chain(*of_layers)) or [RoutedBlock(shape.tokens)]
    kept = [block.kept for block in everything]
    most = max(kept, key=kept.count)
    shown = max((block for block in everything if block.kept == most), key=everything.count)
    return Plan(
        source.title,
        shape,
        batch,
        tuple(layers),
        shown.kept,
        routed(shown),
        dense,
        break_even(alike, shape.tokens, shape.layers * dense_seconds),
        compiled(sizes),
    )


@dataclass(frozen=True)
class RoutedBlock:
    """A layer in a region. scored, scores_next: whether the layer before has made its router logits, and it
    makes those of the next layer."""

    kept: int
    scored: bool = False
    scores_next: bool = False


def routed_blocks(
    table: Sequence[tuple[int, ...] | None], makes_next_logits: bool
) -> list[list[RoutedBlock]]:
    """One list for each layer of `table`, empty where it is not routed: a block for each of so many equally
    long times that every layer's regions are made of them.

    makes_next_logits: whether a layer that keeps rows scores them for a next one that keeps some too.
    """
    times = lcm(*(len(counts) for counts in table if counts))

    def kept(layer: int, time: int) -> int:
        counts = table[layer] if 0 <= layer < len(table) else None
        return counts[time * len(counts) // times] if counts else 0

    def block(layer: int, time: int) -> RoutedBlock:
        own = kept(layer, time)
        hands = makes_next_logits and own > 0
        return RoutedBlock(own, hands and kept(layer - 1, time) > 0, hands and kept(layer + 1, time) > 0)

    return [
        [block(layer, time) for time in range(times)] if counts else [] for layer, counts in enumerate(table)
    ]


def break_even(seconds: Callable[[int], float], tokens: int, limit: float) -> int:
    """The largest kept count up to which `seconds` of it are at most `limit`: N, or 0 for none.

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
