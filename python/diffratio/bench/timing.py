"""Timing that is fair on a shared machine: candidates take turns, medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from tqdm import tqdm


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


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
