"""Planted in one instruction set of the CPU's row kernels alone, and in the choice between them."""

from .mutant import Mutant
from .selections import NATIVE_ROWS

LEVELS = "tests/kernels/test_instruction_sets.py"
MEAN = "const A mean = sum / width;"


def at(condition: str) -> dict[str, str]:
    """A wrong mean in the code that is compiled under a condition."""
    return {MEAN: f"#if {condition}\n  const A mean = sum / (width + 1);\n#else\n  {MEAN}\n#endif"}


NATIVE = [
    Mutant(
        "wrong-mean-at-avx2-alone",
        "wrong in one instruction set",
        "csrc/cpu/norm.h",
        at("defined(__AVX2__) && !defined(__AVX512F__)"),
        NATIVE_ROWS,
    ),
    Mutant(
        "wrong-mean-at-baseline-alone",
        "wrong in one instruction set",
        "csrc/cpu/norm.h",
        at("!defined(__AVX2__)"),
        NATIVE_ROWS,
    ),
    Mutant(
        "every-instruction-set-is-the-best",
        "dispatch silently falling back",
        "csrc/ops.cpp",
        {"return in_use.store(table,": "return in_use.store(runnable().front(),"},
        LEVELS,
    ),
]
