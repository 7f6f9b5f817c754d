"""What each routed block takes while its model runs: time, and the peak memory that the paper's Table 1 has
"averaged across all layers".

Blocks are watched where they are, by hooks: so each gets the inputs, the timesteps and the caches that it has
in its model, whatever the family. On a GPU CUDA events and the allocator's peak count, on a CPU the wall
clock and the allocations that torch's profiler saw.
"""

import os
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import torch
from torch import nn

from ..progress import progress_bar
from ..routing.find import routed_blocks

MEASURED_BY = {
    "cuda": "CUDA events and the allocator's peak",
    "cpu": "the wall clock and torch's profiler",
}
_RANGE = "diffratio layer "


def layer_costs(
    model: nn.Module,
    call: Callable[[], object],
    prepare: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: bool = True,
) -> dict[str, dict[str, list[float]]]:
    """Return for each of ``prepare`` the ``milliseconds`` and ``peak_megabytes`` of every routed block.

    Times are medians over rounds in which the settings take turns, memory is what a block holds in new
    tensors at once; where ``call`` runs a block more than once, both are means over its runs.

    Args:
        model: patched.
        call: runs it; once before, so that what it caches is not counted.
        prepare: name of a setting -> what brings it about.
        rounds: of the times.
        progress: whether a bar is shown.
    """
    blocks, device = routed_blocks(model), next(model.parameters()).device.type
    times: dict[str, list[list[float]]] = {name: [] for name in prepare}
    costs: dict[str, dict[str, list[float]]] = {}
    turns = [*prepare.items()] * rounds
    for name, setting in progress_bar(turns, show=progress, desc="measuring layers", unit="run", leave=False):
        setting()
        times[name].append(_seconds(blocks, call, device))
    for name, setting in prepare.items():
        setting()
        milliseconds = [1e3 * statistics.median(one) for one in zip(*times[name], strict=True)]
        peaks = [peak / 1e6 for peak in _peaks(blocks, call, device)]
        costs[name] = {"milliseconds": milliseconds, "peak_megabytes": peaks}
    return costs


@contextmanager
def _watched(
    blocks: list[nn.Module], before: Callable[[int], None], after: Callable[[int], None]
) -> Iterator[None]:
    """Inside, ``before`` and ``after`` are called around every run of a block, with its number."""
    hooks = []
    for layer, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(partial(_told, before, layer)))
        hooks.append(block.register_forward_hook(partial(_told, after, layer)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _told(what: Callable[[int], None], layer: int, *_) -> None:
    """A hook that changes nothing."""
    what(layer)


def _seconds(blocks: list[nn.Module], call: Callable[[], object], device: str) -> list[float]:
    """Seconds of each block, the mean over its runs."""
    marks: list[list] = [[] for _ in blocks]

    def mark(layer: int) -> None:
        if device == "cpu":
            marks[layer].append(time.perf_counter())
            return
        marks[layer].append(torch.cuda.Event(enable_timing=True))
        marks[layer][-1].record()

    with _watched(blocks, mark, mark):
        call()  # hooks are new to the blocks, which look at themselves again
        for one in marks:
            one.clear()
        call()
    if device == "cpu":
        return [_mean([end - start for start, end in _pairs(one)]) for one in marks]
    torch.cuda.synchronize()
    return [_mean([start.elapsed_time(end) / 1e3 for start, end in _pairs(one)]) for one in marks]


def _peaks(blocks: list[nn.Module], call: Callable[[], object], device: str) -> list[float]:
    """Bytes that each block holds in new tensors at once, the mean over its runs."""
    if device == "cpu":
        return _peaks_on_cpu(blocks, call)
    resident, peaks = 0, [[] for _ in blocks]

    def before(layer: int) -> None:
        nonlocal resident
        resident = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def after(layer: int) -> None:
        peaks[layer].append(torch.cuda.max_memory_allocated() - resident)

    with _watched(blocks, before, after):
        call()
    return [_mean(one) for one in peaks]


def _peaks_on_cpu(blocks: list[nn.Module], call: Callable[[], object]) -> list[float]:
    """The same of the profiler's allocations between the marks of a block's run."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr otherwise
    ranges: dict[int, torch.autograd.profiler.record_function] = {}

    def before(layer: int) -> None:
        ranges[layer] = torch.autograd.profiler.record_function(f"{_RANGE}{layer}")
        ranges[layer].__enter__()

    def after(layer: int) -> None:
        ranges.pop(layer).__exit__(None, None, None)

    with _watched(blocks, before, after), torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = sorted(profile.kineto_results.events(), key=lambda event: event.start_ns())
    memory = [event for event in events if event.name() == "[memory]"]
    times, peaks = [event.start_ns() for event in memory], [[] for _ in blocks]
    for run in (event for event in events if event.name().startswith(_RANGE)):
        start, end = run.start_ns(), run.start_ns() + run.duration_ns()
        inside = memory[bisect_left(times, start) : bisect_right(times, end)]
        most = max(accumulate(event.nbytes() for event in inside), default=0)
        peaks[int(run.name().removeprefix(_RANGE))].append(max(most, 0))
    return [_mean(one) for one in peaks]


def _pairs(marks: list) -> list[tuple]:
    return list(zip(marks[::2], marks[1::2], strict=True))


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0
