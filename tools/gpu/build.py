"""The native library with its CUDA kernels: one that loads is kept, otherwise it is built in place, without
network or virtual environment. Exit code 77: there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from .looks import NOT_AVAILABLE

ROOT = Path(__file__).parents[2]
CHECK = """
import torch, triton
from diffratio_kernels import _native
assert _native.unavailable is None, _native.unavailable
assert _native.cuda_unavailable is None, _native.cuda_unavailable
print("it loads:", _native.instruction_set(), "on the CPU, and", torch.cuda.get_device_name())
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

    def succeeds(*command: str) -> bool:
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode == 0

    loads = succeeds("-c", CHECK)
    return 0 if loads or (succeeds("setup.py", "build_ext", "--inplace") and succeeds("-c", CHECK)) else 1


if __name__ == "__main__":
    sys.exit(main())
