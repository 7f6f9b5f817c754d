"""The plan of a model of any family, whose operators were counted."""

from dataclasses import dataclass
from functools import cache

from diffratio_kernels import kept_tokens

from ..evaluation.flops.counted import ModelCount
from .plan import Cost, Memory, Plan, planned
from .times import Device, Measured


@dataclass(frozen=True)
class CountedShape:
    """What was counted: its class, the tokens of a sample that may be skipped, its routed layers by name."""

    model: str
    tokens: int
    layers: tuple[str, ...]


def plan_counted(count: ModelCount, batch: int, kept: list[list[int]], source: Device | Measured) -> Plan:
    """What one forward of the blocks costs, and whether leaving tokens out pays.

    Seconds are predicted, of every operator by the roofline. The dense block is the routed one that keeps
    all tokens, without its router: the same kernels.

    Args:
        count: of a forward of the whole batch, with all tenths from 0 to 10.
        batch: samples in it.
        kept: tenths [L][R] of equally long regions.
        source: a `Device`, or `Measured`, whose peaks count.
    """
    device = source.peaks if isinstance(source, Measured) else source
    tenths = {kept_tokens(n, count.tokens): n for n in range(11)}

    @cache
    def seconds(number: int, n: int | None) -> float:
        """Of a block that keeps so many tenths."""
        work = count.blocks[number].kept[10 if n is None else n].work.items()
        rated = (
            (device.roof(*one), times) for one, times in work if n is not None or one.operator != "route"
        )
        return sum(one * times for one, times in rated)

    first = {id(block): number for number, block in reversed(list(enumerate(count.blocks)))}

    def block(layer: int, tokens: int | None) -> Cost:
        own, n = count.blocks[layer], None if tokens is None else tenths[tokens]
        spent = seconds(first[id(own)], n)
        return (own.dense if n is None else own.kept[n]).flops, spent, spent

    return planned(
        device.title,
        CountedShape(count.name, count.tokens, count.layers),
        batch,
        count.tokens,
        [[kept_tokens(n, count.tokens) for n in row] for row in kept],
        block,
        Memory(count.weights, count.peak(), count.peak(kept)),
    )
