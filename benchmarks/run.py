"""`make bench`: every level at sizes that a processor measures within the hour, appended to
benchmarks/results/."""

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LEVELS = (
    "peak",
    "operator --batch 2 --rounds 15",
    "block --batch 1 --batch 2 --rounds 15 --compile-mode default",
    "training --batch 1 --rounds 15",
    "model --batch 2 --tokens 256 --kept 1.0 --kept 0.7 --kept 0.5",
    "sampling --batch 1 --tokens 256 --layers 4 --kept 0.5",
)


def main() -> None:
    for level in LEVELS:
        print(f"diffratio bench {level}", flush=True)
        command = [sys.executable, "-m", "diffratio", "bench", *level.split(), "--out", str(RESULTS)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
