"""Query, key and value of a block on one CPU thread: as blocks compute them, and by other ways.

    python -m benchmarks.projections [--rounds 25] [--json]

A line is a number of rows and a way, its median milliseconds and their ratio to the blocks' own: three
products into one buffer. All ways take turns, forwards and backwards."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from diffratio.progress import progress_bar
from diffratio_kernels.blocks.products import project, run_of
from diffratio_kernels.blocks.stream import SelfAttention
from diffratio_kernels.types import Linear

WIDTH, HEADS, ROWS = 1152, 16, (256, 1024, 2048)


def ways(count: int) -> dict:
    """Name -> a call that computes query, key and value of so many rows."""
    torch.manual_seed(0)
    rows, bias = torch.randn(count, WIDTH), torch.randn(3 * WIDTH)
    weight = torch.randn(3 * WIDTH, WIDTH) / WIDTH**0.5
    parts = tuple(Linear(w.clone(), b.clone()) for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    run = run_of("mod_block", "auto", "auto", rows, direct=True)
    run.buffer = rows.new_empty(count * 3 * WIDTH)
    joined = rows.new_empty(count, 3 * WIDTH)
    attention = SelfAttention(parts, parts[0], HEADS)
    return {
        "three into one buffer": lambda: project(run, rows, attention),
        "three apart": lambda: [part(rows) for part in parts],
        "one, of a joined weight": lambda: torch.addmm(bias, rows, weight.t(), out=joined),
        "one, joined in each call": lambda: F.linear(
            rows, torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        ),
    }


def measure(rounds: int) -> list[dict]:
    """Rows of the table."""
    found = []
    for count in ROWS:
        calls = ways(count)
        times = {name: [] for name in calls}
        for _ in progress_bar(range(rounds), desc=f"{count} rows", unit="round"):
            for name in (*calls, *reversed(calls)):
                start = time.perf_counter()
                calls[name]()
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(of) * 1e3 for name, of in times.items()}
        own = next(iter(medians.values()))
        found += [{"rows": count, "way": n, "ms": ms, "ratio": ms / own} for n, ms in medians.items()]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print("{rows:5} rows  {way:26} {ms:7.1f} ms  {ratio:.2f}".format(**row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
