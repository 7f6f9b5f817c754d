"""Seconds of a step: predicted by the roofline of a datasheet, or between those of a results file."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from diffratio_kernels import kept_tokens
from diffratio_kernels._backends import BACKENDS

from ..evaluation.flops import PRESETS, TransformerShape, block_steps, step_cost
from ..evaluation.results import machine_name, roof_of, select

LAUNCHES = {"route": 2, "mlp": 2}
"""Kernels of an operator that is more than one."""
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
NEEDED = "`diffratio bench peak` and `diffratio bench operator` do it, with the same --out"
_OURS = frozenset(name for names in BACKENDS.values() for name in names) - {"reference"}
_OPERATORS = {s.operator for kept in (None, 1) for s in block_steps(PRESETS["pixart-xl-512"], kept)}
_LAUNCH_SECONDS = 1.2e-6
_ATTENTION = 0.65
"""What attention reaches of a big product's rate, where it was not measured; assumed."""


@dataclass(frozen=True)
class Device:
    """What a device reaches.

    Args:
        name: as torch calls it.
        peak_flops: FLOP/s of a big product.
        attention_flops: FLOP/s of attention with heads of 72.
        bandwidth: bytes/s of a kernel that streams.
        source: where the figures are from.
        launch_seconds: of one kernel inside a CUDA graph.
        itemsize: bytes of an element.

    Raises:
        ValueError: a figure that is not positive; the message names it.
    """

    name: str
    peak_flops: float
    attention_flops: float
    bandwidth: float
    source: str
    launch_seconds: float = _LAUNCH_SECONDS
    itemsize: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("name", "source") and not value > 0:
                raise ValueError(f"{name}: {value} must be positive")

    @property
    def title(self) -> str:
        """Where the seconds are from."""
        return f"predicted for {self.name} {self.source}: not measured"

    def seconds(self, operator: str, shape: TransformerShape, kept: int, batch: int) -> tuple[float, str]:
        """The larger time of FLOPs and bytes, and the launches; "predicted"."""
        cost = step_cost(operator, shape, kept, batch=batch, itemsize=self.itemsize)
        return self.roof(operator, cost.flops, cost.bytes), "predicted"

    def roof(self, operator: str, flops: int, moved: int) -> float:
        """Seconds of an operator with so many FLOPs, that moves so many bytes."""
        rate = self.attention_flops if "attention" in operator else self.peak_flops
        launches = LAUNCHES.get(operator, 1) * self.launch_seconds
        return max(flops / rate, moved / self.bandwidth) + launches


def _device(name: str, flops: float, attention: float, bandwidth: float) -> Device:
    """Dense bf16 TFLOP/s and GB/s of the datasheet, and TFLOP/s of attention, which are assumed."""
    source = f"from its datasheet, 80 % of {flops:g} TFLOP/s and 81 % of {bandwidth:g} GB/s"
    return Device(name, 0.8e12 * flops, 1e12 * attention, 0.81e9 * bandwidth, source)


DEVICES = {
    "a100": _device("NVIDIA A100-SXM4-80GB", 312, 180, 2039),
    "h100": _device("NVIDIA H100 80GB HBM3", 989.4, 520, 3350),
    "h200": _device("NVIDIA H200", 989.4, 520, 4800),
}


class Measured:
    """Times of one device, dtype and number of threads: those with the most operator rows.

    Args:
        rows: flat rows as `evaluation.results.read` gives them. Of one measured in several ways the one in a
            graph with a cold cache counts; of an operator the fastest of our backends, or plain PyTorch where
            we have none; of a product the fastest candidate.

    Raises:
        ValueError: there are no peaks; the message says what measures peaks and operators.
    """

    def __init__(self, rows: Sequence[dict]) -> None:
        timed = [row for row in rows if row.get("seconds") and row["dtype"] in ITEMSIZE]
        counted = select(timed, suite="operator") or select(timed, suite="peak")
        most = Counter(map(_setting, counted)).most_common(1)
        self.rows = [row for row in timed if most and _setting(row) == most[0][0]]
        roof = roof_of(self.rows, *most[0][0]) if most else None
        if roof is None:
            raise ValueError(f"rows: no peak of a product and of a copy was measured: {NEEDED}")
        device, dtype, _ = most[0][0]
        self.itemsize = ITEMSIZE[dtype]
        launches = [row["seconds"] for row in self.rows if row["subject"] == "launch"]
        rates = roof.flops, _ATTENTION * roof.flops, roof.bytes
        launch = min(launches, default=_LAUNCH_SECONDS)
        self.peaks = Device(device, *rates, "from its peaks", launch, self.itemsize)
        self._points = _points(self.rows, self.itemsize)

    @property
    def title(self) -> str:
        """Where the seconds are from."""
        newest = max(self.rows, key=lambda row: str(row.get("date")))
        when = f"{newest.get('date')}, {newest.get('commit')}"
        return f"measured on {machine_name(newest)}, {newest['dtype']}, {when}"

    def seconds(self, operator: str, shape: TransformerShape, kept: int, batch: int) -> tuple[float, str]:
        """Seconds of an operator in one block, and where they are from.

        "measured": on the line between two kept counts at these sizes. "scaled": at the rate of the nearest
        sizes. "predicted": from the peaks, where the operator was not measured.
        """
        groups = self._points.get(operator)
        if groups is None:
            return self.peaks.seconds(operator, shape, kept, batch)
        own = batch, shape.tokens, shape.width, shape.heads
        near = min(groups, key=lambda key: sum(abs(log(a / b)) for a, b in zip(key, own, strict=True)))
        work, points = _work(operator, shape, kept, batch, self.itemsize), groups[near]
        below = max((point for point in points if point[0] <= work), default=None)
        above = min((point for point in points if point[0] >= work), default=None)
        if below is None or above is None:
            end, seconds = above or below
            return seconds * work / end, "scaled"
        part = (work - below[0]) / max(above[0] - below[0], 1)
        return below[1] + part * (above[1] - below[1]), "measured" if near == own else "scaled"


def _setting(row: dict) -> tuple[str, str, int]:
    return row["device"], row["dtype"], row["threads"]


def _work(operator: str, shape: TransformerShape, kept: int, batch: int, itemsize: int) -> int:
    """What an operator's time is linear in: FLOPs of products and of attention, bytes of the others."""
    cost = step_cost(operator, shape, kept, batch=batch, itemsize=itemsize)
    computes = operator == "mlp" or operator.startswith("linear") or "attention" in operator
    return cost.flops if computes else cost.bytes


def _points(rows: list[dict], itemsize: int) -> dict[str, dict[tuple, list[tuple[int, float]]]]:
    """operator -> (B, N, D, H) -> (work, seconds), by rising work."""
    times: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (row.get("mode") != "graph", row.get("cache") != "cold")):
        if row["suite"] == "operator" and row["subject"] in _OPERATORS:
            batch, tokens, width, heads = sizes = tuple(row[n] for n in ("batch", "tokens", "width", "heads"))
            shape = TransformerShape(1, width, heads, tokens, row.get("text") or 0)
            kept = kept_tokens(round(10 * row["kept"]), tokens)
            work = _work(row["subject"], shape, kept, batch, itemsize)
            times[row["subject"], sizes, work].setdefault(row["name"], row["seconds"])
    points: dict[str, dict[tuple, list[tuple[int, float]]]] = {}
    for (operator, sizes, work), names in sorted(times.items()):
        at = points.setdefault(operator, {}).setdefault(sizes, [])
        at.append((work, _fastest(operator, names)))
    return points


def _fastest(operator: str, times: dict[str, float]) -> float:
    """Of what a block runs: our backends, plain PyTorch where there is none; of a product every candidate."""
    ours = [seconds for name, seconds in times.items() if name in _OURS or operator.startswith("linear")]
    return min(ours, default=times.get("torch eager", min(times.values())))
