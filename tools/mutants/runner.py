"""`make mutants`: plants each mutant of the catalogue in a copy of the checkout and runs the tests that ought
to see it. The copies and what is known of them stay in build/mutants: a run that was stopped goes on.

python -m tools.mutants.runner [--jobs N] [--json] [text ...]    those whose name holds one of the texts
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from threading import Lock

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from .catalogue import MUTANTS, Mutant
from .sandbox import Outcome, Sandbox, checkout_files, digest

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
REQUIRED = 0.95
"""Part of the mutants that must be caught: 38 of 40."""


class Record:
    """Outcomes by what was run: the tests, and the mutant if any. Those of another state are forgotten."""

    def __init__(self, path: Path, state: str):
        self.path, self.state, self.lock = path, state, Lock()
        known = json.loads(path.read_text()) if path.exists() else {}
        self.outcomes = known["outcomes"] if known.get("state") == state else {}

    def get(self, key: str) -> Outcome | None:
        return Outcome(**self.outcomes[key]) if key in self.outcomes else None

    def add(self, key: str, outcome: Outcome) -> None:
        with self.lock:
            self.outcomes[key] = asdict(outcome)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps({"state": self.state, "outcomes": self.outcomes}, indent=1))
            partial.replace(self.path)


class Runner:
    """Runs selections of tests in `jobs` copies of the checkout at once."""

    def __init__(self, jobs: int):
        files = checkout_files(ROOT)
        self.record = Record(WORK / "outcomes.json", digest(sorted(files.items())))
        self.free: Queue[Sandbox] = Queue()
        self.pool = ThreadPoolExecutor(jobs)
        for i in range(jobs):
            self.free.put(Sandbox(WORK / f"tree-{i}", files))

    def control(self, selection: tuple[str, bool]) -> Outcome:
        """A selection of tests on the checkout as it is."""
        return self._run(selection)

    def mutant(self, mutant: Mutant) -> Outcome:
        return self._run((mutant.tests, mutant.sanitize), mutant.file, mutant.edits)

    def _run(self, selection: tuple[str, bool], *planted) -> Outcome:
        key = digest(selection, *planted)
        if known := self.record.get(key):
            return known
        sandbox = self.free.get()
        try:
            with sandbox.planted(*planted) if planted else nullcontext():
                outcome = sandbox.run(*selection)
        finally:
            self.free.put(sandbox)
        self.record.add(key, outcome)
        return outcome

    def all(self, what: str, function, items: list) -> list[Outcome]:
        outcomes = self.pool.map(function, items)
        return list(tqdm(outcomes, total=len(items), desc=what, file=sys.stderr))


def table(mutants: list[Mutant], outcomes: list[Outcome]) -> Table:
    out = Table(title="planted bugs")
    for column in ("mutant", "class", "file", "outcome", "first test that sees it"):
        out.add_column(column, overflow="fold")
    out.add_column("s", justify="right")
    for mutant, o in zip(mutants, outcomes, strict=True):
        how = o.how if o.caught else "SURVIVED" if o.how == "passed" else "BROKEN"
        out.add_row(mutant.name, mutant.kind, Path(mutant.file).name, how, o.test, f"{o.seconds:.0f}")
    return out


def tests_pass(runner: Runner, mutants: list[Mutant]) -> bool:
    """Whether every selection of tests passes on the checkout as it is; says which ones do not."""
    selections = list(dict.fromkeys((mutant.tests, mutant.sanitize) for mutant in mutants))
    controls = runner.all("without mutants", runner.control, selections)
    for (tests, _), control in zip(selections, controls, strict=True):
        if control.how != "passed":
            print(f"without a mutant: {control.how} {control.test}\n{control.message}\nin {tests}\n")
    return all(control.how == "passed" for control in controls)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("texts", nargs="*", help="run the mutants whose name holds one of these (all)")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the checkout that work at once (2)")
    parser.add_argument("--json", action="store_true", help="print outcomes, and what the tests said")
    arguments = parser.parse_args()
    unknown = [text for text in arguments.texts if not any(text in mutant.name for mutant in MUTANTS)]
    if unknown:
        parser.error(f"no mutant is called {', '.join(unknown)}")
    mutants = [m for m in MUTANTS if not arguments.texts or any(text in m.name for text in arguments.texts)]

    WORK.mkdir(parents=True, exist_ok=True)
    runner = Runner(arguments.jobs)
    try:
        if not tests_pass(runner, mutants):
            return 1
        outcomes = runner.all("mutants", runner.mutant, mutants)
    finally:
        runner.pool.shutdown(cancel_futures=True)

    caught = sum(o.caught for o in outcomes)
    if arguments.json:
        pairs = zip(mutants, outcomes, strict=True)
        print(json.dumps([asdict(m) | asdict(o) | {"caught": o.caught} for m, o in pairs]))
    else:
        Console(width=160).print(table(mutants, outcomes))
        survivors = [m.name for m, o in zip(mutants, outcomes, strict=True) if not o.caught]
        print(f"{caught} of {len(mutants)} caught; not caught: {', '.join(survivors) or 'none'}")
    return int(caught < REQUIRED * len(mutants))


if __name__ == "__main__":
    sys.exit(main())
