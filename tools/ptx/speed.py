"""How long `mod_block` takes in the executor, and how much of the error budget it uses in bf16.

python -m tools.ptx.speed [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time

import torch

from diffratio_kernels import mod_block, reference
from diffratio_kernels.testing.budget import check_budget, longest_sum
from diffratio_kernels.testing.cases import ModBlockCase, cast

from .executor import Options
from .triton_launches import executed

# Text tokens as in PixArt; half of the tokens are kept.
CASES = {
    "B=2 N=64 D=144": ModBlockCase(0, 2, 64, 2, 72, 576, 120, keep=(32, 32), dtype=torch.bfloat16),
    "B=1 N=256 D=1152": ModBlockCase(0, 1, 256, 16, 72, 4608, 120, keep=(128,), dtype=torch.bfloat16),
}


def run(case: ModBlockCase, architecture: int) -> dict:
    """One call: seconds after compiling, millions of warp instructions, and part of the budget."""
    arguments = case.arguments()
    with torch.no_grad(), executed(architecture, Options(threads=os.cpu_count())) as launches:
        mod_block(**arguments, backend="triton")  # compiles
        launches.counts.clear()
        start = time.perf_counter()
        out = mod_block(**arguments, backend="triton")
        seconds = time.perf_counter() - start
    instructions = sum(count for key, count in launches.counts.items() if key[1] == "instructions")
    peer, gold = reference.mod_block(**arguments), reference.mod_block(**cast(arguments, torch.float64))
    used = check_budget("mod_block", out, peer, gold, terms=longest_sum(arguments))
    return {"seconds": round(seconds, 2), "millions": round(instructions / 1e6, 2), "budget": round(used, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of mod_block in the executor of PTX.")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    as_json = parser.parse_args().json
    rows = [
        {"case": name, "architecture": architecture} | run(case, architecture)
        for name, case in CASES.items()
        for architecture in (80, 90)
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            "mod_block {case}, bf16, sm_{architecture}: {seconds} s, {millions} M warp instructions, "
            "{budget} of the error budget".format(**row)
        )


if __name__ == "__main__":
    main()
