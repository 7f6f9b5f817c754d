"""Host time of a PixArt block too small to compute anything, dense and routed, on one CPU thread.

    python -m benchmarks.host [--rounds 15] [--json]

A line each: microseconds of a dense block, of a routed one (keep 1/2), their ratio; dispatcher calls of a
routed block, microseconds of an empty one (torch's `alias`, from Python), and their product: a block of so
many calls takes no less. Medians over rounds, in which dense and routed take turns."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings

import torch
from diffusers import PixArtTransformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode

from diffratio import DiffRatioConfig, apply_diffratio, disable_diffratio, enable_diffratio
from diffratio.progress import progress_bar

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


def microseconds(call, times: int = CALLS) -> float:
    """Of one call."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times * 1e6


def measure(rounds: int) -> dict[str, float]:
    """The figures of the module's docstring, by name."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=LAYERS, sample_size=8, patch_size=2,
        cross_attention_dim=32, caption_channels=24, norm_type="ada_norm_single",
    ).eval()  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the routers are untrained")
        apply_diffratio(model, DiffRatioConfig(0.5))
    x, timestep, text = torch.randn(1, 16, 32), torch.randn(1, 6 * 32), torch.randn(1, 7, 32)

    def blocks() -> None:
        hidden = x
        for block in model.transformer_blocks:
            hidden = block(hidden, encoder_hidden_states=text, timestep=timestep)

    def empty() -> None:
        torch.ops.aten.alias(x)

    found: dict[str, list[float]] = {"dense": [], "routed": [], "empty call": []}
    blocks()
    with _Calls() as calls:
        blocks()
    for _ in progress_bar(range(rounds), desc="host", unit="round"):
        disable_diffratio(model)
        found["dense"].append(microseconds(blocks) / LAYERS)
        enable_diffratio(model)
        found["routed"].append(microseconds(blocks) / LAYERS)
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
        figures = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:30} {value:8.2f} {UNITS[name]}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
