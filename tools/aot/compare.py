"""A report of `make kernels` beside an earlier one: no figure of a shipped kernel gets worse unseen."""

from __future__ import annotations

from .disassembly import matrix_flops
from .report import KEY, name
from .rules import NONE_OF

COMPILERS = {"triton": ("triton", "ptxas"), "cuda": ("nvcc",)}
"""Source of a row -> the parts of the toolchain that make its figures."""


def by_key(found: dict) -> dict[tuple, dict]:
    return {tuple(row[column] for column in KEY): row for row in found["rows"]}


def worse(before: dict, after: dict) -> list[str]:
    """Figures of a row that grew where they must not, or fell where they should not."""
    costs = [figure for figure in (*NONE_OF, "registers", "shared") if after[figure] > before[figure]]
    gains = [figure for figure in ("occupancy", "in_flight") if after.get(figure, 0) < before.get(figure, 0)]
    gains += [kind for kind in ("loads", "async") if after[kind].get("16", 0) < before[kind].get("16", 0)]
    issued = [matrix_flops(row["matrix"], row["threads"]) for row in (before, after)]
    return costs + gains + (["matrix"] if issued[1] > issued[0] else [])


def regressions(before: dict, after: dict) -> list[str]:
    """Rows that were lost, are new or got worse, among those that the same compilers made."""
    found = []
    old, new = by_key(before), by_key(after)
    for key in sorted(old.keys() | new.keys()):
        if any(before["toolchain"][tool] != after["toolchain"][tool] for tool in COMPILERS[key[0]]):
            continue
        if key not in new or key not in old:
            found.append(f"{name(old.get(key) or new[key])}: {'new' if key in new else 'lost'}")
        elif figures := worse(old[key], new[key]):
            found.append(f"{', '.join(figures)}\n  before {old[key]}\n  after  {new[key]}")
    return found
