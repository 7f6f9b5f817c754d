"""Rows of a results file that follow a known law, so that every time has a known answer."""

from types import SimpleNamespace

import pytest

from diffratio.evaluation.flops import TransformerShape, step_cost
from diffratio_kernels import kept_tokens

KEPT = (1.0, 0.8, 0.7, 0.5, 0.3)
FACTS = {
    "device": "Test GPU",
    "capability": "9.0",
    "dtype": "bfloat16",
    "threads": 1,
    "date": "2026-01-02",
    "commit": "abc1234",
}
SHAPE = {"width": 128, "heads": 4, "text": 16}
PEAKS = {
    "matmul": {"flops": 2 * 8192**3, "seconds": 2 * 8192**3 / 5e14},
    "copy": {"bytes": 2**30, "seconds": 2**30 / 2e12},
    "launch": {"seconds": 2e-6},
}
OPERATORS = ("route", "gather_adaln", "linear qkv", "attention", "linear out", "gate_residual",
             "cross_attention", "adaln", "mlp", "scatter_rescale")  # fmt: skip
FIXED = 3e-6


def law(operator, tokens, kept, batch, width=128):
    """A fixed part, and 300 TFLOP/s or 1 TB/s."""
    cost = step_cost(operator, TransformerShape(1, width, 4, tokens, 16), kept, batch=batch)
    computes = operator == "mlp" or "linear" in operator or "attention" in operator
    return FIXED + (cost.flops / 3e14 if computes else cost.bytes / 1e12)


def operator_row(subject, batch, tokens, kept, name="triton", **more):
    row = {**FACTS, **SHAPE, "suite": "operator", "subject": subject, "batch": batch, "tokens": tokens,
           "kept": kept, "name": name, "mode": "graph", "cache": "cold"}  # fmt: skip
    seconds = law(subject, tokens, kept_tokens(round(10 * kept), tokens), batch)
    return {"seconds": seconds, **row, **more}


def operator_rows(batch, tokens, ratios=KEPT):
    return [operator_row(subject, batch, tokens, kept) for subject in OPERATORS for kept in ratios]


def peak_rows():
    return [
        {**FACTS, "suite": "peak", "subject": subject, "name": "torch", "kept": 1.0, **figures}
        for subject, figures in PEAKS.items()
    ]


def block_row():
    return {**FACTS, **SHAPE, "suite": "block", "subject": "PixArt block", "batch": 2, "tokens": 1024,
            "kept": 1.0, "name": "mod_block triton", "seconds": 1e-3}  # fmt: skip


@pytest.fixture
def synthetic():
    """The functions above by name."""
    return SimpleNamespace(
        law=law,
        operator_row=operator_row,
        operator_rows=operator_rows,
        peak_rows=peak_rows,
        block_row=block_row,
        facts=FACTS,
    )
