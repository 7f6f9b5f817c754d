"""The GPU and its versions, into --facts FILE; and the library that carry.py brought along, into its place.

Exit code 77: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

from benchmarks.harness.machine import machine

from .carry import CARRIED, LIBRARY
from .looks import NOT_AVAILABLE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=Path, required=True)
    path = parser.parse_args().facts
    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} finds none")
        return NOT_AVAILABLE
    if (CARRIED / LIBRARY.name).exists():
        shutil.copy2(CARRIED / LIBRARY.name, LIBRARY)
        print(f"{LIBRARY.name} was brought along")
    facts = json.dumps(machine(), indent=1)
    path.write_text(facts + "\n")
    print(facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
