"""What is measured: a subject, and the candidates that do its work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to do a subject's work.

    run: a case -> its result; what must be prepared (compiled) is prepared by the first call. verify: a case
    -> None, AssertionError where the result is outside the error budget; None for other people's code, which
    is timed as it is. kept: part of the tokens that go through. flops, moved: of one call; moved are the
    bytes that it must move, each input read once and each output written once. ours: whether our kernels do
    the work, so that a refusal is our failure. capturable: whether CUDA graphs can hold it, False for what
    waits for the device. allocates: whether a call takes its memory from the allocator, False where a graph
    of its own holds it. about: what its rows say besides; seen: the same, filled by its last run.
    """

    name: str
    run: Callable[[Any], object]
    verify: Callable[[Any], None] | None = None
    kept: float = 1.0
    flops: int = 0
    moved: int | None = None
    ours: bool = False
    capturable: bool = True
    allocates: bool = True
    about: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """Candidates that take turns on the same work; the first is the baseline of all ratios.

    make: seed -> a case, inputs of its own: random and never zeros, because clocks depend on the data.
    case_bytes: what one call touches at least; so many cases rotate that none is found in the L2 cache.
    """

    suite: str
    name: str
    dtype: torch.dtype
    shape: dict[str, int]
    make: Callable[[int], Any]
    case_bytes: int
    candidates: tuple[Candidate, ...]
