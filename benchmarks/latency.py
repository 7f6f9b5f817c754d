"""Latency on a GPU, as JSON: benchmarks/latency.py block|operators|training [--tokens N] [--out FOLDER].

Every figure comes after a check against the reference, and is measured: without a GPU there are ratios only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from machine import clocks, machine

from diffratio.bench.levels.block import block as pixart_block
from diffratio.bench.measure import measure
from diffratio.bench.operators import ATTENTIONS, BLOCK, operator_latency
from diffratio.bench.training import run_training_benchmark
from diffratio_kernels.testing.inputs import ModBlockCase

ROOT = Path(__file__).parents[1]
BATCHES = (1, 4, 16)
SMALL = {"width": 64, "heads": 4, "text": 5, "kept": (1.0, 0.5), "dtype": torch.float32}
SMALL_CASE = ModBlockCase(seed=0, heads=4, head_dim=16, hidden=128, text=5)


def block(tokens: int, gpu: bool) -> list[dict]:
    options = {} if gpu else SMALL | {"device": "cpu", "compile_mode": None}
    implementations = ("cuda", "triton") if gpu else ("native", "reference")
    rows = []
    for batch in BATCHES if gpu else (2,):
        subject = pixart_block(batch, tokens, implementations, **options)
        rows += measure(subject, "cuda" if gpu else "cpu", rounds=30 if gpu else 3)
        torch.cuda.empty_cache()
    return rows


def operators(tokens: int, gpu: bool) -> list[dict]:
    if not gpu:
        small = {"case": SMALL_CASE, "rounds": 3, "dtype": torch.float32, "device": "cpu"}
        return operator_latency(2, tokens, ("native", "reference"), ("sdpa", "varlen"), **small)
    rows = []
    for tenths in (10, 5, 3):
        rows += operator_latency(4, tokens, ("cuda", "triton", "torch"), ATTENTIONS, tenths, BLOCK)
        torch.cuda.empty_cache()
    return rows


def training(tokens: int, gpu: bool) -> list[dict]:
    """Forward and backward: two bins against dense, and against two passes."""
    rows = []
    for batch in (1, 16) if gpu else (2,):
        if gpu:
            result = run_training_benchmark(batch, tokens, dtype=torch.bfloat16, device="cuda", rounds=9)
        else:
            result = run_training_benchmark(batch, tokens, 64, 4, 5, bins=((5, 6),), rounds=3)
        dense = result.rows[0]
        for row in result.rows:
            shape = {"batch": batch, "tokens": tokens, "mode": f"+{row['kept_small']:.1f}"}
            row = {**shape, **row, "of_dense": row["seconds"] / dense["seconds"]}
            rows.append(row if gpu else {name: value for name, value in row.items() if name != "seconds"})
        torch.cuda.empty_cache()
    return rows


def line(row: dict) -> str:
    """A row for the eye."""
    kind = " ".join(row[name] for name in ("implementation", "mode", "cache") if name in row)
    parts = [f"B={row['batch']:<3} N={row['tokens']:<5} {row['name']:24} {kind:10} kept {row['kept']:.1f}"]
    if "seconds" in row:
        parts.append(f"{row['seconds'] * 1e6:10.1f} us")
    if "bytes_per_second" in row:
        parts.append(
            f"{row['bytes_per_second'] / 1e9:8.0f} GB/s {row['flops_per_second'] / 1e12:7.1f} TFLOP/s"
        )
    parts += [f"{row[name]:7.3f} {name}" for name in ("of_baseline", "of_dense", "of_first") if name in row]
    return "  ".join([*parts, row.get("refused", "")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("block", "operators", "training"))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    before = clocks()
    tables = {"block": block, "operators": operators, "training": training}
    rows = tables[arguments.table](arguments.tokens, gpu)
    for row in rows:
        print(line(row))
    facts = machine(ROOT) | {"clocks": {"before": before, "after": clocks()}}
    name = f"{'gpu' if gpu else 'cpu-ratios'}-{arguments.table}-{arguments.tokens}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / name).write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    print(f"written to {arguments.out / name}")


if __name__ == "__main__":
    main()
