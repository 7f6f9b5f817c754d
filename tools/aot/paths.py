"""What is known before each instruction of machine code, over all paths that lead there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

State = dict
Place = tuple[int | None, tuple[int, ...]]
"""Address of an instruction (None behind the last), and where the calls that it is in return to."""

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_INSTRUCTION = re.compile(r"(@\S+\s+)?([A-Z]+)\S*\s*(.*)")


def lines(code: str) -> list[tuple[int, str]]:
    """Address and text of each instruction of `code` (cuobjdump's text)."""
    return [(int(address, 16), text) for address, text in _LINE.findall(code)]


def states(
    code: str, run: Callable[[str, State], None], joined: Callable[[State, State], State]
) -> Iterator[tuple[int, str, State]]:
    """Address and text of each instruction of `code` (cuobjdump's text) that is reached, and the state there.

    An instruction comes once for each chain of calls that reaches it. The first state is empty.

    Args:
        run: changes a state as an instruction does.
        joined: what holds whichever of two paths was taken. More paths may only make it weaker: so loops end.
    """
    instructions = dict(lines(code))
    behind = dict(pairwise([*instructions, None]))
    before: dict[Place, State] = {}
    paths: list[tuple[Place, State]] = [((next(iter(instructions), None), ()), {})]
    while paths:
        place, state = paths.pop()
        if place in before:
            state = joined(before[place], state)
            if state == before[place]:
                continue
        address, calls = place
        if address is None:
            continue
        before[place] = state
        after = dict(state)
        run(instructions[address], after)
        paths += [(following, after) for following in _next(instructions[address], behind[address], calls)]
    return ((address, instructions[address], state) for (address, _), state in before.items())


def _next(text: str, behind: int | None, calls: tuple[int, ...]) -> list[Place]:
    """Where a path may go on after an instruction; `behind` is the address behind it.

    What waits for other threads (BSYNC, WARPSYNC) goes on behind itself, too.
    """
    predicate, name, operands = _INSTRUCTION.match(text).groups()
    if name == "EXIT":
        jumps = []
    elif name == "RET":
        jumps = [(calls[-1], calls[:-1])]
    elif name.startswith(("BRA", "CALL", "BRX", "JM")):
        target = re.search(r"\b0x([0-9a-f]+)$", operands)
        if name not in ("BRA", "CALL") or not target:
            raise ValueError(f"machine code cannot be followed behind {text}: it goes to a computed address")
        jumps = [(int(target[1], 16), calls if name == "BRA" else (*calls, behind))]
    else:
        return [(behind, calls)]
    perhaps = predicate or re.search(r"\b(UR|U?P)\w", operands)
    return [*jumps, (behind, calls)] if perhaps else jumps
