"""`make bench`: one block, inference at B=1 and B=2 (one image under guidance) and training at B=1, into
benchmarks/results/."""

import json
import subprocess
from datetime import date
from pathlib import Path

from rich.console import Console

from diffratio.bench import BlockBenchmark, run_block_benchmark, run_training_benchmark
from diffratio.cli.bench import table, training_table

RESULTS = Path(__file__).parent / "results"


def write(name: str, results: list[BlockBenchmark]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS
    )
    facts = {"date": str(date.today()), "commit": commit.stdout.strip()}
    path = RESULTS / name
    path.write_text(json.dumps([facts | result.to_dict() for result in results], indent=1) + "\n")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def main() -> None:
    console = Console(width=140)
    inference = [run_block_benchmark(batch=batch, rounds=15) for batch in (1, 2)]
    for result in inference:
        console.print(table(result))
    write("cpu-block.json", inference)
    training = run_training_benchmark(rounds=15)
    console.print(training_table(training))
    write("cpu-training.json", [training])


if __name__ == "__main__":
    main()
