"""every_kernel.py under a tool of compute-sanitizer: python -m tools.gpu.sanitize TOOL.

Exit code 77: the tool is not installed, or refuses this device.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from .looks import NOT_AVAILABLE

# Libraries ask the driver for functions it may not have: to memcheck a failed call, to them an answer.
TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": [], "initcheck": [], "synccheck": []}
REFUSED = "Device not supported"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    tool = parser.parse_args().tool
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    if found is None:
        print("compute-sanitizer is not installed")
        return NOT_AVAILABLE
    # Without its cache torch allocates every tensor by itself, so that the tool knows where it ends.
    done = subprocess.run(
        [found, "--tool", tool, *TOOLS[tool], "--error-exitcode", "99"]
        + ["--target-processes", "application-only"]
        + [sys.executable, "-m", "tools.gpu.every_kernel"],
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    return NOT_AVAILABLE if REFUSED in done.stdout else done.returncode


if __name__ == "__main__":
    sys.exit(main())
