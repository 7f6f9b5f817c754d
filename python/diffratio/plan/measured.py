"""Seconds of a step: between the measurements of a results file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import log
from pathlib import Path

from diffratio_kernels.kernels.triton import config
from diffratio_kernels.ops import IMPLEMENTATIONS

from ..bench.record import machine_name
from .cost import Cost, Predicted, bound
from .device import DEVICES, LAUNCH_SECONDS, Device
from .rows import ITEMSIZE, main_setting, preferred, row_sizes, setting
from .steps import OPERATORS, Sizes, Step, step

_OURS = frozenset(name for names in IMPLEMENTATIONS.values() for name in names)
_ATTENTION = 0.65
"""Attention's useful part of what a big product reaches, where no attention was measured; assumed."""

TABLES = Path(__file__).parent / "tables"

Point = tuple[float, float]
"""Work and seconds."""


class Measured:
    """Times of one device and dtype, from flat rows as `diffratio.bench.record.read` gives them.

    The rows of the device, dtype and threads with the most operator rows are used; of a row measured in
    several ways the one in a graph with a cold cache. An operator's time is that of the fastest of our
    implementations, or of `implementation` where that was measured; of plain PyTorch where we have none; of
    a product, that of the fastest candidate.

    Raises:
        ValueError: there is neither a row of an operator nor a whole set of peaks.
    """

    def __init__(self, rows: Sequence[dict], implementation: str | None = None) -> None:
        timed = [row for row in rows if row.get("seconds")]
        chosen = main_setting(timed)
        self.rows = preferred([row for row in timed if setting(row) == chosen])
        self.name, self.dtype, _ = chosen
        self.itemsize = ITEMSIZE[self.dtype]
        self._points = _points(self.rows, implementation, self.itemsize)
        self.peaks = _peaks(self.rows, self.name, self.itemsize)
        if self.peaks is None and not self._points:
            raise ValueError(f"rows: no operator and no peak (matmul and copy) was measured on {self.name}")

    @property
    def title(self) -> str:
        """Where the seconds are from."""
        newest = max(self.rows, key=lambda row: str(row.get("date")))
        when = f"{newest.get('date')}, {newest.get('commit')}"
        return f"measured on {machine_name(newest)}, {self.dtype}, {when}"

    def cost(self, step: Step) -> Cost:
        """Between the two nearest measurements; outside of them at the rate of the nearest, "scaled"; from
        the peaks, "predicted", where the operator has no row.

        Raises:
            ValueError: the operator has no row, and there are no peaks.
        """
        groups = self._points.get(step.operator)
        if groups is None:
            if self.peaks is None:
                raise ValueError(
                    f"rows: neither {step.operator!r} nor the peaks (`diffratio bench peak`) were measured "
                    f"on {self.name}"
                )
            return Predicted(self.peaks).cost(step)
        own = {key: points for key, points in groups.items() if key[2:] == _key(step.sizes)[2:]}
        if own:
            nearest = min(own, key=lambda key: _distance(key, step.sizes))
            pooled = [point for points in own.values() for point in points]
            for points in (own[nearest], pooled):
                seconds = _between(points, step.work)
                if seconds is not None:
                    return Cost(step, seconds, self._bound(step), "measured")
        everything = [point for points in groups.values() for point in points]
        return Cost(step, self._scaled(everything, step.work), self._bound(step), "scaled")

    def is_one_kernel(self, joined: Step) -> bool:
        """Whether a product and the row step after it are planned as this step: on a GPU in a dtype of two
        bytes where it was measured, or where no operator was and the table of tiles says so."""
        if not self._points:
            return Predicted(self.peaks).is_one_kernel(joined)
        alone = {"linear_scatter": {"linear fc1"}}.get(joined.operator, set())
        measured = {joined.operator} | alone <= self._points.keys()
        return measured and self.itemsize == 2 and _architecture(self.rows) is not None

    @property
    def makes_next_logits(self) -> bool:
        """Whether a layer makes the router logits of the next one where it puts its rows back: on a GPU where
        both steps were measured, or no operator was."""
        both = {"select", "scatter_rescale_next"}
        return _architecture(self.rows) is not None and (not self._points or both <= self._points.keys())

    def compiled_dense(self, sizes: Sizes) -> float | None:
        """Seconds of the fastest compiled dense block of these sizes, if one was measured."""
        found = [
            row["seconds"]
            for row in self.rows
            if row["level"] == "block"
            and row["name"].startswith("dense, compiled")
            and row_sizes(row, self.itemsize) == replace(sizes, kept=sizes.tokens)
        ]
        return min(found, default=None)

    def _bound(self, step: Step) -> str:
        return bound(step, self.peaks) if self.peaks else "-"

    def _scaled(self, points: list[Point], work: float) -> float:
        launch = self.peaks.launch_seconds if self.peaks else 0.0
        near, seconds = min(points, key=lambda point: abs(log(point[0] / work)))
        if work > near:
            return seconds * work / near
        launch = min(launch, seconds)
        return launch + (seconds - launch) * work / near


def shipped(device: str) -> Path | None:
    """The results file of a device that comes with the package, if one does."""
    path = TABLES / f"{device}.jsonl"
    return path if path.is_file() else None


def _key(sizes: Sizes) -> tuple:
    return sizes.batch, sizes.tokens, sizes.width, sizes.heads


def _distance(key: tuple, sizes: Sizes) -> float:
    batch, tokens = key[:2]
    rows = log(batch * tokens / (sizes.batch * sizes.tokens))
    return abs(rows) + abs(log(tokens / sizes.tokens))


def _points(rows: list[dict], implementation: str | None, itemsize: int) -> dict:
    """operator -> (batch, tokens, width, heads) -> the points of the fastest candidate, by rising work."""
    chosen = defaultdict(list)
    for row in rows:
        if row["level"] == "operator" and row["subject"] in OPERATORS and row.get("kept", 1.0) > 0:
            chosen[row["subject"]].append(row)
    points: dict = {}
    for operator, found in chosen.items():
        fastest: dict = defaultdict(dict)
        for row in _own(operator, found, implementation):
            sizes = row_sizes(row, itemsize)
            work, times = step(operator, sizes).work, fastest[_key(sizes)]
            times[work] = min(row["seconds"], times.get(work, row["seconds"]))
        if fastest:
            points[operator] = {key: sorted(times.items()) for key, times in fastest.items()}
    return points


def _own(operator: str, rows: list[dict], implementation: str | None) -> list[dict]:
    """The rows of what a block runs: of one implementation, of all of ours; of plain PyTorch, which it runs
    where there is none (`gate_residual` on a CPU); of the reference where nothing else was measured."""
    if operator.startswith("linear"):
        return rows
    by = defaultdict(list)
    for row in rows:
        by[row["name"]].append(row)
    if implementation in by:
        return by[implementation]
    ours = [row for name, found in by.items() if name in _OURS - {"reference"} for row in found]
    return ours or by["torch eager"] or by["reference"]


def _between(points: list[Point], work: float) -> float | None:
    """Seconds on the line between the two points around `work`; None outside of all."""
    below = max((point for point in points if point[0] <= work), default=None)
    above = min((point for point in points if point[0] >= work), default=None)
    if below is None or above is None:
        return None
    if below[0] == above[0]:
        return min(below[1], above[1])
    return below[1] + (above[1] - below[1]) * (work - below[0]) / (above[0] - below[0])


def _architecture(rows: list[dict]) -> int | None:
    """Whose table of tiles the device takes; None for a CPU."""
    capability = rows[0].get("capability")
    return None if capability is None else config.architecture_of(int(capability.split(".")[0]))


def _peaks(rows: list[dict], name: str, itemsize: int) -> Device | None:
    """What the peak rows say of the device; None without a product and a copy."""
    found = {row["subject"]: row for row in rows if row["level"] == "peak"}
    if not {"matmul", "copy"} <= found.keys():
        return None
    flops = found["matmul"]["flops"] / found["matmul"]["seconds"]
    sheet = next((device for device in DEVICES.values() if device.name == name), None)
    return Device(
        name,
        _architecture(rows),
        # One multiprocessor has no waves: a tile's efficiency is all that is lost of the measured peak.
        multiprocessors=sheet.multiprocessors if sheet else 1,
        peak_flops=flops,
        bandwidth=found["copy"]["bytes"] / found["copy"]["seconds"],
        attention_flops=_ATTENTION * flops,
        source="measured peaks",
        launch_seconds=found["launch"]["seconds"] if "launch" in found else LAUNCH_SECONDS,
        itemsize=itemsize,
    )
