"""`make bench`: every suite at sizes that a processor measures within the hour, appended to
benchmarks/results/. Exit code 1: a suite failed; the others were measured all the same."""

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SUITES = (
    "peak",
    "operator --batch 2 --rounds 15",
    "block --batch 1 --batch 2 --rounds 15 --compile-mode default",
    "family --batch 2 --width 768 --heads 12 --text 128 --rounds 5",
    "training --batch 1 --rounds 15",
    "model --batch 2 --tokens 256 --kept 1.0 --kept 0.7 --kept 0.5",
    "sampling --batch 1 --tokens 256 --layers 4 --kept 0.5",
)


def main() -> int:
    failed = False
    for suite in SUITES:
        print(f"diffratio bench {suite}", flush=True)
        command = [sys.executable, "-m", "diffratio", "bench", *suite.split(), "--out", str(RESULTS)]
        failed |= subprocess.run(command).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
