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
    """Median seconds of each call over `rounds` rounds in which every call runs once, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in tqdm(range(rounds), desc="timing", unit="round", disable=not progress):
        for name, call in calls.items():
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
