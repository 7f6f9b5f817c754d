"""What `plan` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..flops import TransformerShape
from .cost import Cost


@dataclass(frozen=True)
class LayerPlan:
    """One layer. kept: tokens in each region, None where it is not routed. flops, seconds: of one forward of
    the whole batch, mean over the regions. of_dense: its seconds over the dense block's."""

    layer: int
    kept: tuple[int, ...] | None
    flops: float
    seconds: float
    of_dense: float


@dataclass(frozen=True)
class Plan:
    """One forward of all blocks, which is what a step of sampling costs beside the embeddings.

    routed_costs: the steps of a block that keeps `shown_kept` tokens, the most frequent count. break_even:
    the largest count up to which layers that all keep it are no slower than dense ones; 0 where none is.
    compiled_seconds: of the compiled dense block of the same sizes, where it was measured.
    """

    title: str
    shape: TransformerShape
    batch: int
    layers: tuple[LayerPlan, ...]
    shown_kept: int
    routed_costs: tuple[Cost, ...]
    dense_costs: tuple[Cost, ...]
    break_even: int
    compiled_seconds: float | None

    @property
    def seconds(self) -> float:
        """Of all blocks."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def dense_seconds(self) -> float:
        """Of all blocks, dense, by the same kernels."""
        return len(self.layers) * sum(cost.seconds for cost in self.dense_costs)

    @property
    def flops(self) -> float:
        """Of all blocks."""
        return sum(layer.flops for layer in self.layers)

    @property
    def dense_flops(self) -> int:
        """Of all blocks, dense."""
        return len(self.layers) * sum(cost.step.flops for cost in self.dense_costs)

    @property
    def latency_ratio(self) -> float:
        """Seconds over the seconds of the dense blocks."""
        return self.seconds / self.dense_seconds

    @property
    def flop_ratio(self) -> float:
        """FLOPs over the FLOPs of the dense blocks."""
        return self.flops / self.dense_flops

    @property
    def realised(self) -> float:
        """E, FLOP ratio over latency ratio: 1 where all FLOPs that are saved are time that is saved."""
        return self.flop_ratio / self.latency_ratio

    @property
    def origins(self) -> set[str]:
        """Where the seconds of the steps are from: the `origin` of their costs."""
        return {cost.origin for cost in self.routed_costs + self.dense_costs}

    @property
    def not_measured(self) -> float:
        """Part of the time of both blocks that is of steps without measurements around their sizes."""
        costs = self.routed_costs + self.dense_costs
        return sum(c.seconds for c in costs if c.origin != "measured") / sum(c.seconds for c in costs)

    @property
    def verdict(self) -> str:
        """Whether it pays, in a line."""
        saved = 1 - self.latency_ratio
        found = f"{abs(saved):.0%} of the blocks' time {'saved' if saved > 0 else 'lost'}"
        limit = f"a layer pays up to {self.break_even} of {self.shape.tokens} tokens kept"
        if not self.break_even:
            limit = "no kept count makes a layer faster"
        return f"{'pays' if saved > 0 else 'does not pay'}: {found}; {limit}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "title": self.title,
            "shape": asdict(self.shape),
            "batch": self.batch,
            "layers": [asdict(layer) for layer in self.layers],
            "shown_kept": self.shown_kept,
            "steps": [_numbers(cost) for cost in self.routed_costs],
            "dense_steps": [_numbers(cost) for cost in self.dense_costs],
            "flops": self.flops,
            "dense_flops": self.dense_flops,
            "seconds": self.seconds,
            "dense_seconds": self.dense_seconds,
            "compiled_block_seconds": self.compiled_seconds,
            "flop_ratio": self.flop_ratio,
            "latency_ratio": self.latency_ratio,
            "realised": self.realised,
            "break_even": self.break_even,
            "verdict": self.verdict,
        }


def _numbers(cost: Cost) -> dict[str, Any]:
    step = cost.step
    return {
        "name": step.name,
        "flops": step.flops,
        "bytes": step.moved,
        "seconds": cost.seconds,
        "bound": cost.bound,
        "origin": cost.origin,
    }
