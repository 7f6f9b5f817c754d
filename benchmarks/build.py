"""Builds the native library with its CUDA kernels in place: no network, no virtual environment.

What it was built on goes to out/gpu/machine.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from diffratio.bench.machine import machine

ROOT = Path(__file__).parents[1]
NOT_AVAILABLE = 77
"""Exit code that says so to gpu.py."""
CHECK = """
import torch, triton
from diffratio_kernels.kernels import cuda, native
assert native.unavailable is None and cuda.unavailable is None, (native.unavailable, cuda.unavailable)
print("it loads:", native.instruction_set(), "on the CPU, and", torch.cuda.get_device_name())
"""


def main() -> int:
    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} finds none")
        return NOT_AVAILABLE
    bin_folder = str(Path(sys.executable).parent)  # cmake and ninja may be installed beside python only
    environment = os.environ | {
        "DIFFRATIO_BUILD_NATIVE": "1",
        "DIFFRATIO_BUILD_CUDA": "1",
        "PATH": os.pathsep.join([os.environ.get("PATH", ""), bin_folder]),
    }
    for command in (["setup.py", "build_ext", "--inplace"], ["-c", CHECK]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
        if done.returncode != 0:
            return 1
    facts = json.dumps(machine(ROOT), indent=1)
    path = ROOT / "out" / "gpu" / "machine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(facts + "\n")
    print(facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
