"""`make bench`: the block benchmark at B=1 and B=2 (one image under guidance), into benchmarks/results/."""

import json
import subprocess
from datetime import date
from pathlib import Path

from rich.console import Console

from diffratio.bench import run_block_benchmark
from diffratio.cli.bench import table

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS
    )
    runs = []
    for batch in (1, 2):
        result = run_block_benchmark(batch=batch, rounds=15)
        Console(width=140).print(table(result))
        runs.append({"date": str(date.today()), "commit": commit.stdout.strip(), **result.to_dict()})
    path = RESULTS / "cpu-block.json"
    path.write_text(json.dumps(runs, indent=1) + "\n")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
