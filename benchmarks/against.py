"""Blocks of this checkout against those of another one, in turns: is anything slower than before?

    python -m benchmarks.against FOLDER [--python FOLDER/.venv/bin/python] [--rounds 8] [--json]

A round starts a new process for each checkout, one thread each, their memory in huge pages, and runs every
case in turns. A line is a case, the median seconds of both, and the median, smallest and largest ratio of a
round. Without huge pages two processes of the same code differ by a third: which physical pages they get."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from diffratio.progress import progress_bar

ROOT = Path(__file__).parents[1]
# What both checkouts have: schemas' positional arguments, apply_diffratio, learn_ratios.
WORKER = r"""
import os, sys, time, warnings
import torch
if hasattr(os, "sched_setaffinity"):  # both on one core: they take turns, and cores differ
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
warnings.simplefilter("ignore")
torch.set_num_threads(1)
import diffratio_kernels
from diffusers.models.attention import BasicTransformerBlock
from torch import nn
from diffratio import DiffRatioConfig, apply_diffratio, learn_ratios

B, N, D, H, M = 2, 1024, 1152, 16, 120
torch.manual_seed(0)
x = torch.randn(B, N, D)
shapes = [(3 * D, D), (3 * D,), (D, D), (D,), (4 * D, D), (4 * D,), (D, 4 * D), (D,)]
weights = [torch.randn(shape) / 40 for shape in shapes]
modulation, router = torch.randn(B, 6, D), torch.randn(D)
cross = {
    "context_kv": torch.randn(B, M, 2, D), "cross_q_weight": torch.randn(D, D) / 40,
    "cross_out_weight": torch.randn(D, D) / 40,
}

def mod_block(keep):
    def run():
        with torch.no_grad():
            torch.ops.diffratio.mod_block(x, router, [keep], modulation, *weights, H, **cross)
    return run

def two_bins():
    leaves = [t.clone().requires_grad_() for t in (x, router, modulation, *weights)]
    weight = torch.full((B,), 0.4, requires_grad=True)
    given = leaves[0], leaves[1], [512], [615], weight, leaves[2], *leaves[3:]
    torch.ops.diffratio.two_bin_block(*given, H, **cross).sum().backward()

class Model(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.block = BasicTransformerBlock(
            width, heads, width // heads, cross_attention_dim=width, norm_type="ada_norm_single",
            norm_elementwise_affine=False, attention_bias=True, activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
        )
    def forward(self, x, text, timestep):
        return self.block(x, encoder_hidden_states=text, timestep=timestep)

def patched(tokens, batch, learning=False):
    model = Model(D, H).eval()
    apply_diffratio(model, DiffRatioConfig(0.5))
    if learning:
        learn_ratios(model, start=0.55)
        model.train()
    args = torch.randn(batch, tokens, D), torch.randn(batch, M, D), torch.randn(batch, 6 * D)
    def run():
        if learning:
            model.zero_grad()
            model(*args).sum().backward()
        else:
            with torch.no_grad():
                model(*args)
    return run

cases = {
    "mod_block, all kept": mod_block(1024), "mod_block, half kept": mod_block(512),
    "mod_block, 30 % kept": mod_block(308), "two_bin_block, forward and backward": two_bins,
    "PixArt block, B=2 N=1024": patched(1024, 2), "PixArt block, B=1 N=256": patched(256, 1),
    "PixArt block, learning, B=1 N=1024": patched(1024, 1, True),
}
for run in cases.values():
    run()
print(*cases, sep="\t", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    cases[line.strip()]()
    print(time.perf_counter() - start, flush=True)
"""


def worker(folder: Path, python: str) -> subprocess.Popen:
    """A process that runs the cases of a checkout on demand."""
    paths = os.pathsep.join([str(folder), str(folder / "python")])
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # Freed memory stays with the process: pages that come anew from the system in every call cost a third
    # of a block. Huge pages: products run up to half slower where small pages fall badly into the caches.
    memory = {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 31), "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }  # fmt: skip
    environment = os.environ | {"PYTHONPATH": paths} | threads | memory
    return subprocess.Popen(
        [python, "-c", WORKER], cwd=folder, env=environment, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def seconds(process: subprocess.Popen, case: str) -> float:
    """Of one run of a case."""
    process.stdin.write(case + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def one_round(other: Path, python: str, turns: int) -> dict[str, tuple[float, float]]:
    """By case, the median seconds of this checkout and of the other, in processes of their own."""
    processes = [worker(ROOT, sys.executable), worker(other, python)]
    cases = [process.stdout.readline().rstrip("\n").split("\t") for process in processes][0]
    found = {}
    for case in cases:
        mine, theirs = [], []
        for _ in range(turns):
            # Whoever comes after the other finds the other's data in the caches: each comes so once.
            first, second, third, fourth = (seconds(processes[which], case) for which in (0, 1, 1, 0))
            mine += [first, fourth]
            theirs += [second, third]
        found[case] = statistics.median(mine), statistics.median(theirs)
    for process in processes:
        process.stdin.close()
        process.wait()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the other checkout, its library built")
    parser.add_argument("--python", help="of the other checkout; by default its own environment's")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3, help="of every case in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    other = arguments.other.resolve()
    python = arguments.python or str(other / ".venv/bin/python")
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in progress_bar(range(arguments.rounds), desc="against", unit="round"):
        for case, times in one_round(other, python, arguments.turns).items():
            found.setdefault(case, []).append(times)
    rows = []
    for case, times in found.items():
        ratios = sorted(mine / theirs for mine, theirs in times)
        rows.append(
            {
                "case": case,
                "seconds": statistics.median(mine for mine, _ in times),
                "other": statistics.median(theirs for _, theirs in times),
                "ratio": statistics.median(ratios),
                "smallest": ratios[0],
                "largest": ratios[-1],
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            line = "{case:38} {seconds:8.4f} s {other:8.4f} s  {ratio:.3f}  ({smallest:.3f} to {largest:.3f})"
            print(line.format(**row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
