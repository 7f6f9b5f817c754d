"""Planted in the checks of machine code that the ahead-of-time gate makes."""

from .mutant import Mutant

FOLDER = "tools/aot/"
WRITTEN_CODE = "tests/aot/test_flight.py -k 'not real_kernel'"

GATE = [
    Mutant(
        "a-wait-covers-the-group-that-it-leaves",
        "wait off by one",
        FOLDER + "flight.py",
        {"if groups > int(wait[1], 16)": "if groups >= int(wait[1], 16)"},
        WRITTEN_CODE,
    ),
    Mutant(
        "each-instruction-reached-once",
        "path not followed",
        FOLDER + "paths.py",
        {"state = joined(before[place], state)": "state = before[place]"},
        WRITTEN_CODE,
    ),
    Mutant(
        "the-first-register-of-a-wide-operand",
        "width of an operand forgotten",
        FOLDER + "operands.py",
        {"range(int(first), int(first) + width)": "range(int(first), int(first) + 1)"},
        WRITTEN_CODE,
    ),
]
