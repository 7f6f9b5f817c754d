"""One block in bf16 by every backend against fp64: python -m tools.gpu.probe [BACKEND].

Each has a process of its own: an illegal memory access ends all work on a GPU in its process. Without a GPU
and with DIFFRATIO_PTX=80 or 90 Triton's kernels run compiled for one, in the executor of tools/ptx. Exit
code 1: one of them failed; 77: neither Triton's nor the CUDA C++ kernels could run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import torch

from benchmarks.harness.options import Options
from benchmarks.suites.block import Routed
from benchmarks.suites.case import BlockCase
from diffratio_kernels._backends import BACKENDS, NotAvailable
from diffratio_kernels.testing import budget

from .looks import NOT_AVAILABLE

COMMAND = (sys.executable, "-m", "tools.gpu.probe")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = {"tokens": 256, "text": 120} if DEVICE == "cuda" else {"tokens": 32, "width": 144, "heads": 2}


def executor():
    """In it, Triton kernels of CPU tensors run as compiled, if that is asked for."""
    if "DIFFRATIO_PTX" not in os.environ:
        return nullcontext()
    from ..ptx.triton_launches import executed

    return executed(int(os.environ["DIFFRATIO_PTX"]))


def check(backend: str) -> int:
    """Of 2 samples, with all tokens kept and with half of them."""
    options = Options(device=DEVICE, dtype=torch.bfloat16, **SIZE)
    try:
        with torch.no_grad(), executor():
            for keep in (options.tokens, options.tokens // 2):
                Routed(keep, backend).verify(BlockCase(options))
    except NotAvailable as error:
        print(f"{backend}: not available: {error}")
        return NOT_AVAILABLE
    print(f"{backend}: right, {max(budget.worst.values()):.2f} of the error budget")
    return 0


def main() -> int:
    if len(sys.argv) > 1:
        return check(sys.argv[1])
    names = ("auto", *BACKENDS["mod_block"])
    running = {name: subprocess.Popen([*COMMAND, name]) for name in names}
    codes = {name: process.wait() for name, process in running.items()}
    failed = [name for name, code in codes.items() if code not in (0, NOT_AVAILABLE)]
    print(f"failed: {', '.join(failed)}" if failed else "none failed")
    return 1 if failed else codes["triton"] and codes["cuda"]


if __name__ == "__main__":
    sys.exit(main())
