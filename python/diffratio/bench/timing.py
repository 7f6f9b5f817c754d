"""Timing that is fair on a shared machine: candidates take turns, medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from tqdm import tqdm

PREHEAT_SECONDS = 0.3
"""Of work before the first round, so that no candidate is timed at the clocks of an idle GPU."""


def interleaved_medians(
    calls: dict[str, Callable[[], object]], rounds: int, progress: bool = True
) -> dict[str, float]:
    """Median seconds of each call over `rounds` rounds in which every call is timed once.

    Each timed call follows an untimed one of its own kind, as the blocks of a model follow each other:
    otherwise it pays for the pages that the allocator gave back after its neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds), desc="timing", unit="round", disable=not progress):
        for name, call in calls.items():
            call()
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


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


def rotations(set_bytes: int, device: str, most: int = 16) -> int:
    """Sets of buffers to rotate among, 3 times the L2 cache: a call finds nothing of its own there."""
    if device == "cpu":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(most, -(-3 * cache // set_bytes)))


def rotating_times(
    candidates: dict[Hashable, list[Callable[[], object]]],
    rounds: int,
    device: str,
    graphs: bool,
    progress: bool = True,
) -> dict[Hashable, Times]:
    """Seconds of one call of every candidate: a list of calls, one per set of buffers.

    A round runs the whole list of each candidate once, with `graphs` as one CUDA graph, timed by events. On
    the CPU there are no graphs, and the host's clock counts.
    """
    graphs = graphs and device != "cpu"
    shared = (torch.cuda.graph_pool_handle(), torch.cuda.Stream()) if graphs else None
    passes = {name: _pass(calls, shared) for name, calls in candidates.items()}
    seconds: dict[Hashable, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + PREHEAT_SECONDS * (device != "cpu")
    while time.perf_counter() < end:
        for one_pass in passes.values():
            one_pass()
        _synchronize()
    for _ in tqdm(range(rounds), desc="timing", unit="round", disable=not progress):
        for name, one_pass in passes.items():
            seconds[name].append(_seconds(one_pass, device) / len(candidates[name]))
    return {name: Times(values) for name, values in seconds.items()}


def _pass(calls: list[Callable[[], object]], shared: tuple | None) -> Callable[[], None]:
    """All calls in order, each result dropped; with a pool and a stream, as a CUDA graph."""

    def one_pass() -> None:
        for call in calls:
            call()

    if shared is None:
        one_pass()
        return one_pass
    pool, stream = shared
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        one_pass()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The graphs run one after the other and their results are not read: they may share their memory.
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        one_pass()
    return graph.replay


def _seconds(one_pass: Callable[[], None], device: str) -> float:
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


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
