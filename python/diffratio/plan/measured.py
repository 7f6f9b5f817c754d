"""Seconds of a step between the measurements of a results file."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import log

from diffratio_kernels import kept_tokens
from diffratio_kernels._backends import BACKENDS

from ..evaluation.flops import TransformerShape, block_steps, step_cost
from ..evaluation.results import machine_name
from ..evaluation.roofline import roof_of
from .device import Device

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
NEEDED = "`diffratio bench peak` and `diffratio bench operator` do it, with the same --out"
_OURS = frozenset(name for names in BACKENDS.values() for name in names) - {"reference"}
_OPERATORS = {step.operator for routed in (True, False) for step in block_steps(True, routed)}
_ATTENTION = 0.65
"""What attention reaches of a big product's rate, where it was not measured; assumed."""


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
        suites = [[row for row in timed if row["suite"] == suite] for suite in ("operator", "peak")]
        settings = Counter(map(_setting, suites[0] or suites[1])).most_common(1)
        setting = settings[0][0] if settings else ()
        self.rows = [row for row in timed if _setting(row) == setting]
        roof = roof_of(self.rows, *setting) if settings else None
        if roof is None:
            raise ValueError(f"rows: no peak of a product and of a copy was measured: {NEEDED}")
        self.itemsize = ITEMSIZE[setting[1]]
        launch = min((row["seconds"] for row in self.rows if row["subject"] == "launch"), default=1.2e-6)
        attention = _ATTENTION * roof.flops
        self.peaks = Device(
            setting[0], roof.flops, attention, roof.bytes, "from its peaks", launch, self.itemsize
        )
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
    times = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in sorted(rows, key=lambda row: (row.get("mode") != "graph", row.get("cache") != "cold")):
        if row["suite"] == "operator" and row["subject"] in _OPERATORS:
            batch, tokens, width, heads = sizes = tuple(row[n] for n in ("batch", "tokens", "width", "heads"))
            shape = TransformerShape(1, width, heads, tokens, row.get("text") or 0)
            kept = kept_tokens(round(10 * row["kept"]), tokens)
            work = _work(row["subject"], shape, kept, batch, itemsize)
            times[row["subject"]][sizes][work].setdefault(row["name"], row["seconds"])
    return {
        operator: {
            sizes: sorted((work, _fastest(operator, names)) for work, names in at.items())
            for sizes, at in groups.items()
        }
        for operator, groups in times.items()
    }


def _fastest(operator: str, times: dict[str, float]) -> float:
    """Of what a block runs: our backends, plain PyTorch where there is none; of a product every candidate."""
    ours = [seconds for name, seconds in times.items() if name in _OURS or operator.startswith("linear")]
    return min(ours, default=times.get("torch eager", min(times.values())))
