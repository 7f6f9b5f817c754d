"""What a step of the loop with the matrix products costs, and what runs beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from .paths import lines

_PRODUCT = re.compile(r"H(G)?MMA\b")
_JUMP = re.compile(r"(?:@\S+\s+)?BRA\b.*\b0x([0-9a-f]+)$")
_COPIES = re.compile(r"DEPBAR\.LE SB0, 0x([0-9a-f]+)")
_WAIT = "WARPGROUP.DEPBAR"


def figures_of_loop(code: str) -> dict[str, int]:
    """Of the loop with the most products in `code` (cuobjdump's text).

    step: instructions of a pass that jumps over whatever it can, such as the mask of the last block.
    in_flight: groups of asynchronous copies that none of its waits waits for.
    waited_alone: products of the kernel where ptxas made each of them wait for the one before, else 0.
    """
    step = max(_loops(code), key=lambda step: sum(bool(_PRODUCT.search(text)) for _, text in step))
    waits = [int(found[1], 16) for _, text in step if (found := _COPIES.match(text))]
    return {"step": _shortest(step), "in_flight": min(waits, default=0), "waited_alone": _waited_alone(code)}


def _waited_alone(code: str) -> int:
    """ptxas calls such matrix instructions "serialized": nothing runs beside them."""
    found = ["HGMMA" in text for _, text in lines(code) if "HGMMA" in text or text.startswith(_WAIT)]
    alone = sum(product and not following for product, following in pairwise(found))
    return alone if alone == sum(found) > 2 else 0


def _loops(code: str) -> Iterator[list[tuple[int, str]]]:
    """Instructions from where a jump leads back to, to that jump; no loop with another one in it."""
    instructions, inner = lines(code), []
    for end, text in instructions:
        jump = _JUMP.match(text)
        begin = int(jump[1], 16) if jump else end
        if begin < end and not any(begin <= other < end for other in inner):
            inner.append(begin)
            yield [(at, text) for at, text in instructions if begin <= at <= end]


def _shortest(step: list[tuple[int, str]]) -> int:
    """Instructions of the shortest way through a loop, whose jumps inside go forward."""
    addresses = [at for at, _ in step]
    reached = {addresses[0]: 1}
    for (at, text), behind in zip(step, addresses[1:], strict=False):
        jump, after = _JUMP.match(text), reached.get(at, len(step)) + 1
        for target in ([int(jump[1], 16)] if jump else []) + ([] if text.startswith("BRA 0x") else [behind]):
            reached[target] = min(reached.get(target, after), after)
    return reached[addresses[-1]]
