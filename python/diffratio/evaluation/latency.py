"""The one latency loop: candidates take turns, so that whatever else the machine does strikes all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch

from ..progress import progress_bar

PREHEAT_SECONDS = 0.3
"""Of work before the first round, so that no candidate is timed at the clocks of an idle GPU."""
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of one call in every round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the 20th and the 80th percentile, as a part of the median."""
        if len(self.seconds) < 2:
            return 0.0
        fifths = statistics.quantiles(self.seconds, n=5, method="inclusive")
        return (fifths[3] - fifths[0]) / self.median

    def ratio(self, baseline: Times) -> float:
        """The median over rounds of this time as a part of the baseline's in the same round."""
        pairs = zip(self.seconds, baseline.seconds, strict=True)
        return statistics.median(own / other for own, other in pairs)


def rotating_times(
    passes: Mapping[Hashable, Callable[[], object]],
    calls: int,
    rounds: int,
    device: str,
    progress: bool = True,
    most_seconds: float = float("inf"),
    prepare: Mapping[Hashable, Callable[[], object]] | None = None,
    description: str = "timing",
) -> dict[Hashable, Times]:
    """Seconds of one call of every candidate, round by round.

    Args:
        passes: candidate -> what a round does of it.
        calls: how many calls a pass makes.
        rounds: passes of each candidate.
        device: "cpu" (the host's clock counts) or "cuda" (events do).
        progress: whether a bar is shown.
        most_seconds: rounds end after so many, but not before the third.
        prepare: candidate -> what is done before each of its passes, outside of its time.
        description: of the bar.
    """
    prepare = prepare or dict.fromkeys(passes, _nothing)
    seconds: dict[Hashable, list[float]] = {name: [] for name in passes}
    end = time.perf_counter() + PREHEAT_SECONDS * (device != "cpu")
    while passes and time.perf_counter() < end:
        for name, one_pass in passes.items():
            prepare[name]()
            one_pass()
        torch.cuda.synchronize()
    start = time.perf_counter()
    for i in progress_bar(range(rounds), show=progress, desc=description, unit="round", leave=False):
        if i >= LEAST_ROUNDS and time.perf_counter() - start > most_seconds:
            break
        for name, one_pass in passes.items():
            prepare[name]()
            seconds[name].append(_seconds(one_pass, device) / calls)
    return {name: Times(values) for name, values in seconds.items()}


def _nothing() -> None:
    """What is done where there is nothing to prepare."""


def _seconds(one_pass: Callable[[], object], device: str) -> float:
    if device == "cpu":
        one_pass()  # or it would pay for the pages that the allocator gave back after its neighbour
        start = time.perf_counter()
        one_pass()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    one_pass()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
