"""Planted where calls are known again: what they are known by, and what is kept."""

from .mutant import Mutant

REGISTER = "diffratio_kernels/_register.py"
ROUTE = "diffratio_kernels/ops/route/reference.py"
SHORTCUT = "tests/blocks/test_shortcut.py -k"

HOST = [
    Mutant(
        "calls-known-without-their-dtypes",
        "key too short",
        REGISTER,
        {"value.shape, value.dtype, value.device": "value.shape, value.device"},
        f"{SHORTCUT} weight_that_changed",
    ),
    Mutant(
        "values-checked-in-the-first-call-alone",
        "stale value used",
        REGISTER,
        {"(value.is_cpu and value.is_floating_point())": "value.is_cpu"},
        f"{SHORTCUT} checked_in_every_call",
    ),
    Mutant(
        "signatures-without-a-bound",
        "memory kept",
        REGISTER,
        {"            if len(self.passed) >= self.ROOM:\n                self.passed.clear()\n": ""},
        f"{SHORTCUT} few_signatures",
    ),
    Mutant(
        "constants-of-a-captured-graph-are-kept",
        "stale value used",
        ROUTE,
        {"return not traced and not (like.is_cuda and torch": "return not traced or (like.is_cuda and torch"},
        f"{SHORTCUT} traced_or_captured",
    ),
]
