"""Does sm_90 machine code leave alone what its matrix products are still working on?

An HGMMA runs beside the program. Until the wait that covers it nothing else may read or write its
accumulators, nor write its registers of A. In PTX, Triton's attention of head_dim 64 and 128 moves
accumulators too early (copies for the tied operands of its wait), which PTX leaves undefined. ptxas drops
these moves, but nobody promised that it always will.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .operands import registers
from .paths import states


class Held(NamedTuple):
    """Registers of a product in flight: its accumulators, or A, which others may read."""

    registers: range
    readable: bool


InFlight = dict[Held, int]
"""What is held -> how many groups of products were committed since, its own included."""

_PRODUCT = re.compile(r"HGMMA\.64x(\d+)x\S+ R(\d+), (?:R(\d+), )?")
# Matched from the start: behind a predicate it covers nothing.
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)")


def touched_in_flight(code: str) -> int:
    """Instructions of `code` (cuobjdump's text) that touch what a product in flight holds, on any path."""
    if "HGMMA" not in code:
        return 0
    reached = states(code, _run, _joined)
    return len({at for at, text, held in reached if any(_touches(text, each) for each in held)})


def _run(text: str, held: InFlight) -> None:
    """The effect of one instruction on what is in flight."""
    if product := _product(text):
        held.update(dict.fromkeys(product, 0))
        if "gsb0" in text:  # commits the group of all products since the last such
            for each in held:
                held[each] += 1
    elif wait := _WAIT.match(text):
        for each in [each for each, groups in held.items() if groups > int(wait[1], 16)]:
            del held[each]


def _joined(one: InFlight, other: InFlight) -> InFlight:
    """What is in flight on either of two paths, as late as on either."""
    return {each: min(path[each] for path in (one, other) if each in path) for each in one | other}


def _touches(text: str, held: Held) -> bool:
    if product := _product(text):
        accumulators, *a = product
        reads = {register for each in a for register in each.registers}
        # Products in flight may add to the same accumulators.
        writes = set() if accumulators == held else {*accumulators.registers}
    else:
        reads, writes = registers(text)
    return not {*held.registers}.isdisjoint(writes if held.readable else reads | writes)


def _product(text: str) -> list[Held]:
    """What an HGMMA holds: its accumulators (fp32), then A if that is in registers."""
    if "HGMMA" not in text:
        return []
    columns, first, a = _PRODUCT.search(text).groups()
    accumulators = Held(range(int(first), int(first) + int(columns) // 2), readable=False)
    return [accumulators] + ([Held(range(int(a), int(a) + 4), readable=True)] if a else [])
