"""Rows of a results file that follow a known law, so that every prediction has a known answer."""

from types import SimpleNamespace

import pytest

from diffratio.plan.rows import row_sizes
from diffratio.plan.steps import routed_steps, step

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


def seconds_of(one):
    """The law: a fixed part, and 300 TFLOP/s or 1 TB/s."""
    return FIXED + one.work / (3e14 if one.computes else 1e12)


def operator_row(subject, batch, tokens, kept, name="triton", **more):
    row = {**FACTS, **SHAPE, "level": "operator", "subject": subject, "batch": batch, "tokens": tokens,
           "kept": kept, "name": name, "mode": "graph", "cache": "cold"} | more  # fmt: skip
    return {"seconds": seconds_of(step(subject, row_sizes(row, 2))), **row}


def operator_rows(batch, tokens, ratios=KEPT):
    return [operator_row(subject, batch, tokens, kept) for subject in OPERATORS for kept in ratios]


def block_rows(batch, tokens, ratios=KEPT, name="mod_block triton", factor=1.0, **steps):
    rows = []
    for kept in ratios:
        row = {**FACTS, **SHAPE, "level": "block", "subject": "PixArt block", "batch": batch,
               "tokens": tokens, "kept": kept, "name": name, "mode": "graph", "cache": "cold"}  # fmt: skip
        seconds = sum(seconds_of(one) for one in routed_steps(row_sizes(row, 2), **steps))
        rows.append(row | {"seconds": factor * seconds, "spread": 0.04})
    return rows


def peak_rows():
    return [
        {**FACTS, "level": "peak", "subject": subject, "name": "torch", "kept": 1.0, **figures}
        for subject, figures in PEAKS.items()
    ]


@pytest.fixture
def synthetic():
    """The functions above by name."""
    return SimpleNamespace(
        operator_row=operator_row,
        operator_rows=operator_rows,
        block_rows=block_rows,
        peak_rows=peak_rows,
        seconds_of=seconds_of,
        facts=FACTS,
    )
