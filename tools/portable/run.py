"""`make portable`: the numerics tests under every pair of settings of the libraries below us (cells.py).

A cell is a pytest run of its own, whose processes each prove that the settings are in effect (proof.py); what
this processor or these libraries cannot do is named. Logs are in build/portable. Exit code 1: a test failed,
a setting was not in effect, or nothing could run.

python -m tools.portable.run [--list] [--json] [--cell NAME ...] [--pick TEXT]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .cells import AXES, HELD, VARIABLES, Cell, Setting, every_cell, matrix

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "portable"
LIMIT = 15 * 60
"""Seconds for one cell; it should take 4 minutes on 2 cores."""

# Whatever compares sums: numpy's products (Triton's interpreter), torch's loops, MKL's and oneDNN's products.
TESTS = [
    "tests/reference",
    "tests/kernels",
    "tests/ops",
    "tests/blocks",
    "tests/testing",
    "tests/gpu/test_large.py",
]
TESTS += [f"tests/diffratio/routing/test_two_bin{part}.py" for part in ("", "_checkpointing")]
# There too, but about memory, copies, selections, schemas and processes, and half of the time.
TESTS += [
    f"--ignore=tests/{file}.py"
    for file in (
        "kernels/test_instruction_sets",
        "kernels/triton/test_fences",
        "kernels/triton/test_large_offsets",
        "kernels/triton/test_layouts",
        "kernels/triton/test_score_matrices",
        "kernels/triton/test_untouched_rows",
        "ops/test_opcheck",
        "testing/test_time_limit",
    )
]


@dataclass(frozen=True)
class Result:
    """What a cell came to. failed: ids of tests. problem: why nothing is proven, else None."""

    cell: str
    tests: int
    skipped: int
    failed: list[str]
    seconds: float
    problem: str | None

    @property
    def passed(self) -> bool:
        return self.problem is None and not self.failed

    def __str__(self) -> str:
        text = f"{self.tests} tests, {len(self.failed)} failed, {self.skipped} skipped, {self.seconds:.0f} s"
        return text if self.problem is None else f"{text}; {self.problem}"


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's, with `variables` instead of all that the matrix decides on."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    path = [str(ROOT), str(ROOT / "python"), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | variables | {"PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""}


def difference(wanted: dict[str, str], found: dict[str, str]) -> str | None:
    """What is not in effect of what a setting or a cell asks for."""
    wrong = [
        f"{name} is {found[name]} instead of {value}"
        for name, value in wanted.items()
        if found[name] != value
    ]
    return "; ".join(wrong) or None


def unusable(settings: list[Setting]) -> dict[Setting, str | None]:
    """Why settings cannot take effect here, None where they do: in one process, alone where it dies."""
    variables = environment(Cell(tuple(settings)).environment)
    done = subprocess.run(
        [sys.executable, "-m", "tools.portable.proof"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
    )
    if done.returncode == -signal.SIGILL:
        if len(settings) == 1:
            return {settings[0]: "illegal instruction on this processor"}
        return {one: reason for alone in settings for one, reason in unusable([alone]).items()}
    if done.returncode != 0:
        names = ", ".join(one.name for one in settings)
        raise SystemExit(f"{names} cannot be tried: exit code {done.returncode}\n{done.stderr}")
    found = json.loads(done.stdout)
    return {one: difference(one.proof, found) for one in settings}


def all_reasons() -> dict[Setting, str | None]:
    """Of every setting: libraries choose independently, so that one process tries one setting of each."""
    rows = [[one for one in row if one is not None] for row in zip_longest(*AXES, HELD)]
    return {one: reason for row in rows for one, reason in unusable(row).items()}


def run(cell: Cell, tests: list[str] = TESTS, out: Path = OUT) -> Result:
    """The tests in a process group of its own, which does not outlive the limit or an interrupt."""
    out.mkdir(parents=True, exist_ok=True)
    log, report, proof = (out / f"{cell.name}.{suffix}" for suffix in ("log", "xml", "jsonl"))
    report.unlink(missing_ok=True)
    proof.write_text("")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tools.portable.proof",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
    ]
    command += [f"--junitxml={report}", "-o", "junit_family=xunit1", *tests]
    start = time.monotonic()
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(cell.environment) | {"PORTABLE_PROOF": str(proof)},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    failed = [
        f"{case.get('file')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    found = [json.loads(line) for line in proof.read_text().splitlines()]
    if code is None:
        problem = f"stopped after {LIMIT / 60:.0f} minutes, see {log}"
    elif code != (1 if failed else 0):
        problem = f"pytest ended with exit code {code}, see {log}"
    elif not found:
        problem = f"no process has proven its settings, see {log}"
    else:
        problem = next(filter(None, (difference(cell.proof, one) for one in found)), None)
    return Result(cell.name, len(cases), skipped, failed, round(time.monotonic() - start, 1), problem)


def table(results: list[Result]) -> Table:
    out = Table("cell", title="numerics tests")
    for column in ("tests", "failed", "skipped", "seconds"):
        out.add_column(column, justify="right")
    out.add_column("problem", overflow="fold")
    for one in results:
        figures = one.tests, len(one.failed), one.skipped, round(one.seconds)
        out.add_row(one.cell, *map(str, figures), one.problem or "")
    return out


def failures(results: list[Result]) -> dict[str, list[str]]:
    """Each test that failed, and the cells in which it did."""
    tests = sorted({test for one in results for test in one.failed})
    return {test: [one.cell for one in results if test in one.failed] for test in tests}


def chosen(arguments: argparse.Namespace, reasons: dict[Setting, str | None]) -> list[Cell]:
    """The cells that the command line asks for, of those that can run here."""
    cells = matrix([setting for setting, reason in reasons.items() if reason is None])
    if arguments.cell:
        cells = [cell for cell in every_cell() if cell.name in arguments.cell]
        lacking = [f"{one.name}: {reasons[one]}" for cell in cells for one in cell.settings if reasons[one]]
        if lacking:
            raise SystemExit("cannot run here: " + "; ".join(lacking))
    if not cells:
        raise SystemExit("no cell can run here")
    if arguments.pick is not None:
        number = int.from_bytes(hashlib.sha256(arguments.pick.encode()).digest())
        cells = [cells[number % len(cells)]]
    return cells


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--list", action="store_true", help="name the cells and what cannot run here, run nothing"
    )
    parser.add_argument("--json", action="store_true", help="print results as JSON, progress on stderr")
    parser.add_argument("--cell", action="append", metavar="NAME", help="only this cell (also several times)")
    parser.add_argument(
        "--pick", metavar="TEXT", help="only one cell, chosen by a text such as a commit's hash"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.cell or ()) - {cell.name for cell in every_cell()}
    if unknown:
        parser.error(f"no cell is called {', '.join(sorted(unknown))}")

    reasons = all_reasons()
    cells = chosen(arguments, reasons)
    not_here = {setting.name: reason for setting, reason in reasons.items() if reason}
    progress = sys.stderr if arguments.json else sys.stdout
    for name, reason in not_here.items():
        print(f"not here: cells of {name}: {reason}", file=progress)
    if arguments.list:
        names = [cell.name for cell in cells]
        print(json.dumps({"cells": names, "not_here": not_here}) if arguments.json else "\n".join(names))
        return 0

    results: list[Result] = []
    try:
        for number, cell in enumerate(cells, 1):
            print(f"[{number}/{len(cells)}] {cell.name} ... ", end="", file=progress, flush=True)
            results.append(run(cell))
            print(results[-1], file=progress, flush=True)
    except KeyboardInterrupt:
        rest = " ".join(f"--cell {cell.name}" for cell in cells[len(results) :])
        print(f'stopped; the rest: make portable ARGS="{rest}"', file=progress)
        return 130
    if arguments.json:
        print(json.dumps({"cells": [asdict(one) for one in results], "not_here": not_here}))
    else:
        Console().print(table(results))
        for test, where in failures(results).items():
            print(f"{test}\n    failed in {', '.join(where)}")
    return int(not all(one.passed for one in results))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: ends the cell's processes
    sys.exit(main())
