"""What is measured: a subject, and the candidates that do its work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One way to do a subject's work.

    run: a case -> its result; what must be prepared (compiled) is prepared by the first call. verify: a case
    -> None, AssertionError where the result is outside the error budget; None for other people's code, which
    is timed as it is. kept: part of the tokens that go through. flops: of one call.
    """

    name: str
    run: Callable[[Any], object]
    verify: Callable[[Any], None] | None = None
    kept: float = 1.0
    flops: int = 0

    @property
    def key(self) -> tuple[str, float]:
        """What tells it from the other candidates."""
        return self.name, self.kept


@dataclass(frozen=True)
class Subject:
    """Candidates that take turns on the same work; the first is the baseline of all ratios.

    make: seed -> a case, inputs of its own: random and never zeros, because clocks depend on the data.
    case_bytes: what one call touches at least; so many cases rotate that none is found in the L2 cache.
    """

    level: str
    name: str
    shape: dict[str, int]
    make: Callable[[int], Any]
    case_bytes: int
    candidates: tuple[Candidate, ...]
