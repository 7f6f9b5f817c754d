"""From a subject to rows: the gate first, then memory, then times of all candidates in turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from diffratio_kernels.testing.memory import peak_bytes

from .subject import Candidate, Subject
from .timing import Times, rotating_times, rotations

CACHES = ("cold", "warm")
"""Whether a call finds its inputs in the L2 cache: cases that rotate, or one case again and again."""
REFUSALS = (RuntimeError, ValueError, ImportError)


@torch.no_grad()
def measure(subject: Subject, device: str, rounds: int = 30, progress: bool = True) -> list[dict]:
    """One row per candidate, mode ("graph": CUDA graphs; "eager") and state of the cache.

    A row holds level, subject, name, kept, the shape, flops, mode, cache, `of_baseline`, the time as a part
    of the first candidate's in the same round (median of rounds), `spread` of the times and peak_bytes above
    what was resident; on a GPU `seconds` too, on a CPU ratios only. A candidate that does not run here has
    one row with `refused`, the reason.

    Raises AssertionError if a candidate is outside the error budget: then nothing is timed.
    """
    first = subject.make(0)
    able, rows = _gate(subject, first)
    cases = [first, *map(subject.make, range(1, rotations(subject.case_bytes, device)))]
    peaks = {candidate.key: peak_bytes(partial(candidate.run, first), device) for candidate in able}
    for mode in ("eager",) if device == "cpu" else ("graph", "eager"):
        for cache in CACHES if device != "cpu" else CACHES[:1]:
            lists = {c.key: _calls(c, cases, cache) for c in able}
            times = rotating_times(lists, rounds, device, mode == "graph", progress)
            baseline = times[able[0].key]
            for candidate in able:
                rows.append(
                    about(subject, candidate)
                    | {"mode": mode, "cache": cache}
                    | _figures(times[candidate.key], baseline, device)
                    | {"peak_bytes": peaks[candidate.key]}
                )
    return rows


def about(subject: Subject, candidate: Candidate) -> dict:
    """What a row says besides figures."""
    return {
        "level": subject.level, "subject": subject.name, "name": candidate.name, "kept": candidate.kept,
        **subject.shape, "flops": candidate.flops,
    }  # fmt: skip


def _gate(subject: Subject, case: Any) -> tuple[list[Candidate], list[dict]]:
    """Candidates that run here, within the error budget, and a row for each of the others."""
    able, refused = [], []
    for candidate in subject.candidates:
        try:
            if candidate.verify is not None:
                candidate.verify(case)
            candidate.run(case)
            able.append(candidate)
        except REFUSALS as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            refused.append(about(subject, candidate) | {"refused": reason[0]})
    if not able or able[0] is not subject.candidates[0]:
        raise RuntimeError(f"{subject.name}: the baseline does not run: {refused[0]['refused']}")
    return able, refused


def _calls(candidate: Candidate, cases: list, cache: str) -> list[Callable[[], object]]:
    return [partial(candidate.run, case if cache == "cold" else cases[0]) for case in cases]


def _figures(times: Times, baseline: Times, device: str) -> dict:
    figures = {"of_baseline": times.ratio(baseline), "spread": times.spread}
    return figures | ({} if device == "cpu" else {"seconds": times.median})
