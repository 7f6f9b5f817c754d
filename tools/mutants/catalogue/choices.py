"""Planted in the choice of what "auto" runs on a GPU."""

from .mutant import Mutant

CHOICE = "diffratio_kernels/_choice.py"
TESTS = "tests/ops/properties/test_choice.py"

CHOICES = [
    Mutant(
        "slowest-library-counts",
        "wrong choice",
        CHOICE,
        {"library = max(known, key": "library = min(known, key"},
        TESTS,
    ),
    Mutant(
        "prediction-taken-for-a-measurement",
        "wrong choice",
        CHOICE,
        {'if source == "measured" and here': "if here"},
        TESTS,
    ),
    Mutant(
        "gradients-by-a-library",
        "wrong choice",
        "diffratio_kernels/ops/attention/op.py",
        {'query.device.type == "cuda" and not gradient:': 'query.device.type == "cuda":'},
        TESTS,
    ),
    Mutant(
        "key-lengths-given-to-a-library-that-takes-none",
        "check removed",
        CHOICE,
        {' or call.lengths and backend in ("varlen", "flash_attn")': ""},
        TESTS,
    ),
    Mutant(
        "ratio-of-a-far-shape",
        "wrong choice",
        CHOICE,
        {"return inf if max(each) > NEAR else sum(each)": "return sum(each)"},
        TESTS,
    ),
]
