"""Which vector registers an instruction of machine code reads and writes."""

from __future__ import annotations

import re

# Name of the instruction -> registers of each operand, the last number for all further ones. The first line
# that matches counts. The result of I2F.U64 is over-counted.
_WIDTHS = [
    (re.compile(pattern), widths)
    for pattern, widths in (
        (r"SHF\.", (1,)),  # the halves of a .U64 are operands of their own
        (r"IMAD\.WIDE", (2, 1, 1, 2)),
        (r"IMAD\.HI", (1, 1, 1, 2)),
        (r"HMMA\.", (4, 4, 2, 4)),
        (r"\S+\.128\b|(LD|ST)SM\S*\.4$", (4,)),
        (r"\S+\.[FSU]?64\b|(LD|ST)SM\S*\.2$|CS2R(?!\.32)|D(ADD|FMA|MUL|SETP)|RET\b", (2,)),
        (r"", (1,)),
    )
]
_ONLY_READS = re.compile(r"ST|RED|R2UR|\w+SETP|RET\b")
"""All others write the register that they name first, if it is no address."""
_PREDICATE = re.compile(r"!?U?P[\dRT]")


def registers(text: str) -> tuple[set[int], set[int]]:
    """Vector registers that an instruction reads, and those that it writes. It does not know HGMMA."""
    name, rest = re.match(r"(?:@\S+\s+)?(\S+)\s*(.*)", text).groups()
    widths = next(widths for pattern, widths in _WIDTHS if pattern.match(name))
    operands = [each for each in map(str.strip, rest.split(",")) if not _PREDICATE.fullmatch(each)]
    reads, writes = set(), set()
    for place, operand in enumerate(operands):
        address = "[" in operand
        used = reads if place or address or _ONLY_READS.match(name) else writes
        for first, pair in re.findall(r"\bR(\d+)\b(\.64)?", operand):
            width = 1 + bool(pair) if address else widths[min(place, len(widths) - 1)]
            used.update(range(int(first), int(first) + width))
    return reads, writes
