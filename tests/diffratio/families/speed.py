"""Blocks of the families beside PixArt and DiT: routed against dense, in turns, on one CPU thread.

    python -m tests.diffratio.families.speed [--rounds 3] [--only TEXT] [--json]

fp32, B=2, N=1024 image and 128 text tokens, D=768 in 12 heads; the blocks are those of the tests' cases at
these sizes. A line is a block, the dense median in ms, and for every kept share the median ratio of time
routed to dense, beside that of the FLOPs that torch counts."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffratio import DiffRatioConfig, apply_diffratio, remove_diffratio
from diffratio.progress import progress_bar

FOLDER = Path(__file__).parent
NAMES = (
    "flux_double", "flux_single", "flux2_single", "qwen_image", "wan", "sd3_joint", "ltx", "hunyuan_double",
    "krea2",
)  # fmt: skip
"""Cases that take the sizes; others have some of their own."""
KEPT = (1.0, 0.5, 0.3)


def cases() -> dict:
    """The tests' blocks at these sizes, which their files take when they are imported."""
    file = FOLDER / "cases/case.py"
    spec = importlib.util.spec_from_file_location("tests.diffratio.families.cases.case", file)
    case = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(case)
    case.HEADS, case.WIDTH, case.D = 12, 64, 768
    case.N, case.TEXT = 1024, 128
    from tests.diffratio.families.cases import BLOCKS

    return BLOCKS


def seconds(call) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def flops(call) -> int:
    """Of one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measured(make, rounds: int) -> dict:
    """Dense median in ms, and for every kept share the ratio of times and of FLOPs."""
    from tests.diffratio.families.cases.case import Holder

    torch.manual_seed(0)
    case = make()
    model = Holder(case.block, **case.model)
    timestep = torch.tensor([0.5, 0.5])

    def dense():
        case.block(**case.inputs)

    def routed():
        model(timestep, case.inputs, **case.told)

    with torch.no_grad():
        dense_flops, shares = flops(dense), {}
        for kept in KEPT:
            apply_diffratio(model, DiffRatioConfig(round(1 - kept, 1)))
            counted = flops(routed)
            remove_diffratio(model)
            ratios, denses = [], []
            for turn in range(rounds + 1):
                first = seconds(dense)
                apply_diffratio(model, DiffRatioConfig(round(1 - kept, 1)))
                routed()
                mine = seconds(routed)
                remove_diffratio(model)
                if turn:
                    ratios.append(mine / first)
                    denses.append(first)
            shares[kept] = {"time": statistics.median(ratios), "flops": counted / dense_flops}
    return {"dense_ms": 1000 * statistics.median(denses), "kept": shares}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="blocks whose name holds this")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    blocks, found = cases(), {}
    for name in progress_bar([n for n in NAMES if arguments.only in n], desc="families", unit="block"):
        found[name] = measured(blocks[name], arguments.rounds)
        if not arguments.json:
            row = found[name]
            parts = [f"{kept:.1f}: {v['time']:.2f} ({v['flops']:.2f})" for kept, v in row["kept"].items()]
            print(f"{name:16} {row['dense_ms']:7.1f} ms  {'  '.join(parts)}", flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
