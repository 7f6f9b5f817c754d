"""`plan`: the FLOPs and seconds of every layer, and up to which kept count compression pays."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import takewhile
from statistics import fmean
from typing import Any

from diffratio_kernels import kept_tokens

from ..evaluation.flops import KeptTable, Step, TransformerShape, block_steps, kept_table, step_cost
from .times import Device, Measured

Cost = tuple[float, float, float]
"""FLOPs, seconds, and the seconds of it that were not measured."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer: its kept tokens in each region; FLOPs and seconds of one forward of the whole batch, means
    over the regions; and its seconds over the dense block's."""

    layer: int
    kept: tuple[int, ...]
    flops: float
    seconds: float
    of_dense: float


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Args:
        weights: of the model.
        dense, routed: what the block that takes most has alive at once, beside weights and what it is given.
    """

    weights: int
    dense: int
    routed: int


@dataclass(frozen=True)
class Plan:
    """One forward of all blocks, which is what a step of sampling costs beside the embeddings.

    Args:
        title: where the seconds are from.
        shape: what is planned; of a counted model, its sizes.
        batch, layers: samples, and what is kept and spent where.
        dense_flops, dense_seconds: of one dense block, by the same kernels; the mean of all blocks.
        break_even: the largest tenth of the tokens up to which the layers are no slower than dense ones.
        not_measured: part of the time that is of steps without a measurement at these sizes.
        flop_ratio, latency_ratio: FLOPs and seconds of all blocks over those of the dense ones.
        memory: of a counted model.
    """

    title: str
    shape: Any
    batch: int
    layers: tuple[LayerPlan, ...]
    dense_flops: float
    dense_seconds: float
    break_even: float
    not_measured: float
    flop_ratio: float
    latency_ratio: float
    memory: Memory | None = None

    @property
    def realised(self) -> float:
        """E, FLOP ratio over latency ratio: 1 where all FLOPs that are saved are time that is saved."""
        return self.flop_ratio / self.latency_ratio

    @property
    def verdict(self) -> str:
        """Whether it pays, in a line."""
        saved = 1 - self.latency_ratio
        found = f"{abs(saved):.0%} of the blocks' time {'saved' if saved > 0 else 'lost'}"
        limit = f"a layer pays up to {self.break_even} of the tokens kept"
        if not self.break_even:
            limit = "no kept count makes a layer faster"
        return f"{'pays' if saved > 0 else 'does not pay'}: {found}; {limit}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: the fields and the properties."""
        return asdict(self) | {"realised": self.realised, "verdict": self.verdict}


def plan(
    shape: TransformerShape,
    batch: int,
    kept: KeptTable,
    source: Device | Measured,
    *,
    cache_text_kv: bool = True,
) -> Plan:
    """What one forward of the blocks costs, and whether leaving tokens out pays.

    Args:
        shape: the transformer and its tokens N.
        batch: samples in the forward; classifier-free guidance doubles it.
        kept: tokens kept, 0 to N: one count, one of each layer, or [L][R] of equally long regions.
        source: a `Device` (seconds are predicted) or `Measured` (from a results file).
        cache_text_kv: the text keys and values are projected once for all steps, on both sides.

    Raises:
        ValueError: an impossible argument; the message starts with its name.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch: {batch!r} must be a positive integer")
    table = kept_table(kept, shape)

    @cache
    def block(count: int | None) -> Cost:
        """Of a block that keeps so many tokens; None is dense."""
        steps = block_steps(shape, count, cache_text_kv=cache_text_kv)
        if count == 0:
            steps = [Step("copy", "copy", 0)]
        flops = sum(step_cost(step.operator, shape, step.rows, batch=batch).flops for step in steps)
        times = [source.seconds(step.operator, shape, step.rows, batch) for step in steps]
        missing = sum(seconds for seconds, origin in times if origin != "measured")
        return flops, sum(seconds for seconds, _ in times), missing

    return planned(source.title, shape, batch, shape.tokens, table, lambda layer, count: block(count))


def planned(
    title: str,
    shape: Any,
    batch: int,
    tokens: int,
    table: list[list[int]],
    block: Callable[[int, int | None], Cost],
    memory: Memory | None = None,
) -> Plan:
    """The plan of a table [L][R] of kept tokens.

    Args:
        title, shape, batch, memory: of the plan.
        tokens: N.
        block: (layer, kept tokens or None for the dense block) -> what it costs.
    """
    numbers = range(len(table))
    dense_flops, dense_seconds, missing = _sum(block(number, None) for number in numbers)
    total, layers = dense_seconds, []
    for number, counts in enumerate(table):
        flops, seconds, unmeasured = map(fmean, zip(*(block(number, n) for n in counts), strict=True))
        of_dense = seconds / block(number, None)[1]
        layers.append(LayerPlan(number, tuple(counts), flops, seconds, of_dense))
        missing, total = missing + unmeasured, total + seconds

    def pays(tenths: int) -> bool:
        return _sum(block(n, kept_tokens(tenths, tokens)) for n in numbers)[1] <= dense_seconds

    return Plan(
        title=title,
        shape=shape,
        batch=batch,
        layers=tuple(layers),
        dense_flops=dense_flops / len(table),
        dense_seconds=dense_seconds / len(table),
        break_even=max(takewhile(pays, range(1, 11)), default=0) / 10,
        not_measured=missing / total,
        flop_ratio=sum(layer.flops for layer in layers) / dense_flops,
        latency_ratio=sum(layer.seconds for layer in layers) / dense_seconds,
        memory=memory,
    )


def _sum(costs) -> Cost:
    return tuple(map(sum, zip(*costs, strict=True)))
