"""Do the matrix products of sm_90 machine code read their operands where they are?

An HGMMA takes an operand in shared memory by a descriptor in two uniform registers. The lower one holds its
address and differs from program to program; the upper one holds strides and swizzle, which are constants of
the kernel. ptxas 12.8 (of Triton 3.6 and 3.7) sometimes adds an address to the upper half: a product then
reads other memory, and its result is wrong or the kernel ends in an illegal memory access. Seen on an H200 in
attention of head_dim 40, 48, 72, 80, 88, 96, 136 and 144. The PTX was right, and with ptxas 13.0 or
`DISABLE_PTXAS_OPT=1` so was the result.
"""

from __future__ import annotations

import re

from .paths import states

WRONG = -1
"""An upper half that something which is no constant was added to."""
Values = dict[int, int]
"""Uniform register -> the constant that it holds on every path to this place, or WRONG if it is so on any."""

_PRODUCT = re.compile(r"HGMMA\S+ R\d+, (R\d+, )?gdesc\[UR(\d+)\]")
_LARGEST_ADDRESS = 1 << 14  # the lower half's address, in units of 16 bytes


def wrong_descriptors(code: str) -> int:
    """How many descriptors of the matrix products in `code` (cuobjdump's text) have an address in their upper
    half. An upper half that was kept in a vector register is not looked into."""
    if "HGMMA" not in code:
        return 0
    found = set()
    for address, text, values in states(code, _run, _joined):
        if product := _PRODUCT.search(text):
            first = int(product[2])
            upper = (first + 3,) if product[1] else (first + 1, first + 3)  # A in registers: B's alone
            found |= {(address, register) for register in upper if values.get(register) == WRONG}
    return len(found)


def _joined(one: Values, other: Values) -> Values:
    """What holds whichever of two paths was taken."""
    wrong = {register: WRONG for each in (one, other) for register in each if each[register] == WRONG}
    return dict(one.items() & other.items()) | wrong


def _run(text: str, values: Values) -> None:
    """The effect of one instruction: additions and moves are followed, all else is not."""
    parsed = re.match(r"(@!?U?P\w+ )?([\w.]+)\s+UR(\d+)((?:,.*)?)$", text)
    if not parsed:
        return
    predicate, name, target, rest = parsed.groups()
    target = int(target)
    sources = [s for s in map(str.strip, rest.split(",")[1:]) if not re.fullmatch(r"!?UP\w", s)]
    results: dict[int, int | None] = {target: None}
    if name == "UMOV":
        results[target] = _value(sources[0], values)
    elif (
        name == "UIADD3.X"
    ):  # the upper half of a sum: with a carry that addresses and their offsets never give
        terms = [_value(source, values) for source in sources]
        known = [term for term in terms if term is not None]
        if WRONG in terms or (len(known) < len(terms) and any(known)):
            results[target] = WRONG
        elif len(known) == len(terms):
            results[target] = sum(known) % 2**32
    elif name == "UIADD3.64":
        results[target + 1] = _upper_sum(sources, values)
    elif name.startswith(("UIMAD.WIDE", "ULDC.64")):
        results[target + 1] = None
    for register, value in results.items():
        if predicate and value != values.get(register):
            value = WRONG if WRONG in (value, values.get(register)) else None
        if value is None:
            values.pop(register, None)
        else:
            values[register] = value


def _value(source: str, values: Values) -> int | None:
    if source == "URZ":
        return 0
    if re.fullmatch(r"-?0x[0-9a-f]+", source):
        return int(source, 16) % 2**32
    return values.get(int(source[2:])) if re.fullmatch(r"UR\d+", source) else None


def _upper_sum(sources: list[str], values: Values) -> int | None:
    """Upper half of a 64-bit sum of an address: of UR[n] + imm, UR[n] + UR[m] or UR[n] - UR[m]."""
    total = 0
    for source in sources:
        register = re.fullmatch(r"(-?)UR(\d+)", source)
        if register is None:
            continue  # URZ, or an immediate that fits into the lower half
        minus, lower = register[1], int(register[2])
        upper = values.get(lower + 1)
        if upper in (None, WRONG) or (minus and lower not in values):
            return upper if upper == WRONG else None
        # What is subtracted is negative in 64 bits, so its lower half exceeds every address: a borrow.
        total += -upper - (values[lower] >= _LARGEST_ADDRESS) if minus else upper
    return total % 2**32
