"""Timing that is fair on a shared machine: candidates take turns, medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


def rotations(set_bytes: int, device: str, most: int = 16) -> int:
    """Sets of buffers to rotate among, 3 times the last cache: a call finds nothing of its own there."""
    return max(2, min(most, -(-3 * cache_bytes(device) // set_bytes)))


def cache_bytes(device: str) -> int:
    """The GPU's L2 cache, or the processor's L3 as the system describes it (32 MiB where it does not)."""
    if device != "cpu":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        return 1024 * int(Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip(" K\n"))
    except (OSError, ValueError):
        return 2**25


def passes_of(
    lists: dict[Hashable, list[Callable[[], object]]], graphs: bool, refusals: tuple[type[Exception], ...]
) -> tuple[dict[Hashable, Callable[[], None]], dict[Hashable, Exception]]:
    """Name -> all calls of its list in order, each result dropped, run once and with `graphs` captured as one
    CUDA graph; and name -> why that failed."""
    shared = (torch.cuda.graph_pool_handle(), torch.cuda.Stream()) if graphs else None
    passes, refused = {}, {}
    for name, calls in lists.items():
        try:
            passes[name] = _pass(calls, shared)
        except refusals as error:
            refused[name] = error
    return passes, refused


def rotating_times(
    passes: dict[Hashable, Callable[[], None]],
    calls: int,
    rounds: int,
    device: str,
    progress: bool = True,
    most_seconds: float = float("inf"),
) -> dict[Hashable, Times]:
    """Seconds of one call of every candidate. calls: how many of them a pass makes.

    A round makes one pass of each candidate. Rounds end after `most_seconds`, but not before the third. On a
    GPU events count, on the CPU the host's clock.
    """
    seconds: dict[Hashable, list[float]] = {name: [] for name in passes}
    end = time.perf_counter() + PREHEAT_SECONDS * (device != "cpu")
    while passes and time.perf_counter() < end:
        for one_pass in passes.values():
            one_pass()
        torch.cuda.synchronize()
    start = time.perf_counter()
    for i in progress_bar(range(rounds), show=progress, desc="timing", unit="round", leave=False):
        if i >= LEAST_ROUNDS and time.perf_counter() - start > most_seconds:
            break
        for name, one_pass in passes.items():
            seconds[name].append(_seconds(one_pass, device) / calls)
    return {name: Times(values) for name, values in seconds.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Of one call by the host's clock, waiting for the device."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _pass(calls: list[Callable[[], object]], shared: tuple | None) -> Callable[[], None]:
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
        with _without_waits():
            one_pass()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The graphs run one after the other and their results are not read: they may share their memory. The
    # outer context is left also where the end of a failed capture raises.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
        one_pass()
    return graph.replay


@contextmanager
def _without_waits() -> Iterator[None]:
    """RuntimeError for what waits for the device: in a capture it would leave torch's generator unusable."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


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
