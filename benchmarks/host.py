"""Host time of blocks too small to compute anything, on one CPU thread.

    python -m benchmarks.host [--rounds 15] [--json]

First blocks as on a GPU, whose launches are recorded (`benchmarks.launches`): microseconds of a call, how
many calls of an operator that does nothing these are, and the launches.

Then PixArt's block on the CPU. A line each: microseconds of a dense block, of a routed one (keep 1/2), their
ratio; dispatcher calls of a routed block, microseconds of an empty one (torch's `alias`, from Python), and
their product: a block of so many calls takes no less. Medians over rounds, in which all take turns."""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffratio import disable_diffratio, enable_diffratio
from diffratio.progress import progress_bar

from . import launches
from .launches import microseconds, pixart

LAYERS, CALLS = 8, 40
UNITS = {
    "dense": "us", "routed": "us", "routed / dense": "", "dispatcher calls": "", "empty call": "us",
    "calls x empty call": "us", "routed / (calls x empty call)": "",
}  # fmt: skip


class _Calls(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def measure(rounds: int) -> dict[str, float]:
    """The figures of the module's docstring, by name."""
    model, given = pixart(LAYERS, torch.float32)
    x = given.pop("hidden_states")

    def blocks() -> None:
        hidden = x
        for block in model.transformer_blocks:
            hidden = block(hidden, **given)

    def empty() -> None:
        torch.ops.aten.alias(x)

    found: dict[str, list[float]] = {"dense": [], "routed": [], "empty call": []}
    blocks()
    with _Calls() as calls:
        blocks()
    for _ in progress_bar(range(rounds), desc="host", unit="round"):
        disable_diffratio(model)
        found["dense"].append(microseconds(blocks, CALLS) / LAYERS)
        enable_diffratio(model)
        found["routed"].append(microseconds(blocks, CALLS) / LAYERS)
        found["empty call"].append(microseconds(empty, 100 * CALLS))
    medians = {name: statistics.median(times) for name, times in found.items()}
    dense, routed, one = medians["dense"], medians["routed"], medians["empty call"]
    number = calls.count / LAYERS
    values = dense, routed, routed / dense, number, one, number * one, routed / (number * one)
    return dict(zip(UNITS, values, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        recorded, figures = launches.measure(4 * arguments.rounds), measure(arguments.rounds)
    if arguments.json:
        print(json.dumps({"launches recorded": recorded, "on the CPU": figures}, indent=2))
    else:
        for name, of in recorded.items():
            print(f"{name:30} {of['us']:8.2f} us, {of['empty calls']:.1f} calls, {of['launches']} launches")
        for name, value in figures.items():
            print(f"{name:30} {value:8.2f} {UNITS[name]}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
