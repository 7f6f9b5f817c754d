"""From a subject to rows: the gate first, then memory, then times of all candidates in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import torch

from diffratio.evaluation.latency import Times, rotating_times
from diffratio.evaluation.memory import peak_bytes
from diffratio_kernels._backends import NotAvailable

from .subject import Candidate, Subject
from .timing import passes_of, rotations

PASS_SECONDS = 2e-3
"""What one pass over the cases should take at least: short calls are repeated, up to 16 times."""
MODES = {"cuda": ("graph", "eager"), "cpu": ("eager",)}
SECONDS = {"cuda": 20.0, "cpu": 300.0}
"""Of timed rounds for one mode and state of the cache; slow subjects get fewer rounds, 3 at least."""


@torch.no_grad()
def measure(
    subject: Subject,
    device: str,
    rounds: int = 30,
    progress: bool = True,
    modes: tuple[str, ...] | None = None,
) -> list[dict]:
    """One row per candidate, mode ("graph": CUDA graphs; "eager") and state of the L2 cache.

    "cold": cases rotate, so that a call finds nothing of its own; "warm": one case again and again, for
    cases that fit. A row holds suite, subject, dtype, the shape, name, kept, flops, bytes, mode, cache,
    seconds (median of rounds), `of_baseline`, the time as a part of the first candidate's in the same round
    (median of rounds; not there where that one was refused), `spread` of the times and peak_bytes above what
    was resident. modes: None for all that the device has.

    What raises, or is outside of the error budget, is not timed: its row has `refused`, the reason, and
    `failed` where that is our failure (`is_failure`). The others go on.
    """
    try:
        return _measure(subject, device, rounds, progress, modes or MODES[device])
    except torch.OutOfMemoryError as error:
        return [_refusal(subject, candidate, error) for candidate in subject.candidates]


def is_failure(candidate: Candidate, error: Exception) -> bool:
    """Whether a refusal is our failure: our kernels could run here, and raised or gave a wrong result. Other
    people's code may refuse what it likes, and no kernel is to blame for a device that it was not made for
    or that is too small."""
    return candidate.ours and not isinstance(error, (NotAvailable, torch.OutOfMemoryError))


def _measure(
    subject: Subject, device: str, rounds: int, progress: bool, modes: tuple[str, ...]
) -> list[dict]:
    torch.compiler.reset()  # a function compiled for eight shapes runs eagerly at a ninth
    first = subject.make(0)
    able, rows = _gate(subject, first)
    if not able:
        return rows
    count = rotations(subject.case_bytes, device)
    cases = [first, *map(subject.make, range(1, count))]
    cases *= _repeats(partial(able[0].run, first), count)
    peaks = {
        c: {"peak_bytes": peak_bytes(partial(c.run, first), device)} if c.allocates else {} for c in able
    }
    for mode in modes:
        for cache in ("cold",) if device == "cpu" or count <= 3 else ("cold", "warm"):
            graphs = mode == "graph"
            lists = {c: _calls(c, cases, cache) for c in able if c.capturable or not graphs}
            passes, refused = passes_of(lists, graphs, (Exception,))
            rows += [_refusal(subject, c, error) | {"mode": mode} for c, error in refused.items()]
            times = rotating_times(passes, len(cases), rounds, device, progress, SECONDS[device])
            state = {"mode": mode, "cache": cache}
            for c, own in times.items():
                figures = _figures(own, times.get(subject.candidates[0])) | c.seen | peaks[c]
                rows.append(about(subject, c) | state | figures)
    return rows


def about(subject: Subject, candidate: Candidate) -> dict:
    """What a row says besides figures."""
    return {
        "suite": subject.suite, "subject": subject.name, "dtype": str(subject.dtype).removeprefix("torch."),
        **subject.shape, "name": candidate.name, "kept": candidate.kept, **candidate.about,
        "flops": candidate.flops,
    } | ({} if candidate.moved is None else {"bytes": candidate.moved})  # fmt: skip


def _gate(subject: Subject, case: Any) -> tuple[list[Candidate], list[dict]]:
    """Candidates that run here, within the error budget, and a row for each of the others."""
    able, refused = [], []
    for candidate in subject.candidates:
        try:
            if candidate.verify is not None:
                candidate.verify(case)
            candidate.run(case)
            able.append(candidate)
        except Exception as error:  # whatever it is, the other candidates are measured
            refused.append(_refusal(subject, candidate, error))
    return able, refused


def _refusal(subject: Subject, candidate: Candidate, error: Exception) -> dict:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    failed = {"failed": True} if is_failure(candidate, error) else {}
    return about(subject, candidate) | {"refused": reason[0]} | failed


def _repeats(call: Callable[[], object], count: int) -> int:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = count * (time.perf_counter() - start)
    return max(1, min(16, ceil(PASS_SECONDS / seconds)))


def _calls(candidate: Candidate, cases: list, cache: str) -> list[Callable[[], object]]:
    return [partial(candidate.run, case if cache == "cold" else cases[0]) for case in cases]


def _figures(times: Times, baseline: Times | None) -> dict:
    figures = {"seconds": times.median, "spread": times.spread, "rounds": len(times.seconds)}
    return figures | ({} if baseline is None else {"of_baseline": times.ratio(baseline)})
