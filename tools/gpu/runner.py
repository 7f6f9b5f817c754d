"""`make gpu`: what needs a GPU, as looks of a few minutes each: `--look correct`, then `speed`, `second` ...

The steps of each look are in looks.py. Each is a process with a limit of its own: what it breaks, it breaks
for itself. After every step all results and logs are written as one archive, gpu-<look>.tar.gz, to --out,
$OUT or out/gpu. carry.py makes a folder with all that a machine without network lacks.

Exit code 0: every step passed; 1: one failed or was cut off; 3: none did, but some were not run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from importlib.machinery import PathFinder
from pathlib import Path

from benchmarks.harness.machine import commit

from .carry import missing_here
from .looks import LOOKS, NOT_AVAILABLE, START, TIME_IS_UP, Step
from .outcomes import read_outcomes

ROOT = Path(__file__).parents[2]
WORK = ROOT / "out" / "gpu"
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Variables that name the compilers' caches, and their folders: one for all steps."""
REHEARSAL = 300
"""Seconds of each step in a dry run: limits are of a GPU."""
STATUSES = {0: "passed", TIME_IS_UP: "passed in part", NOT_AVAILABLE: "not available"}
BAD, NOT_RUN = {"failed", "cut off"}, {"not available", "no time left", "not started"}


class Run:
    """One look on this machine: its folder, its archive and what its steps came to. A dry run has both of its
    own."""

    def __init__(self, name: str, work: Path, out: Path, dry: bool = False):
        self.name, self.dry = f"{name}-dry-run" if dry else name, dry
        self.work, self.folder, self.archive = work, work / self.name, out / f"gpu-{self.name}.tar.gz"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.carried, self.commit = missing_here(), commit()
        path = self.folder / "results.json"
        # Steps that are run again alone replace what they came to before; the others keep it.
        self.entries = json.loads(path.read_text())["steps"] if path.exists() else {}

    def steps(self, chosen: Iterable[Step]) -> dict[str, str]:
        """Run steps in order, one line each; name -> status.

        A step ends when the limits of all steps up to it are used up: time that one leaves over goes to the
        next ones, and none can take what another was promised.
        """
        chosen, statuses = list(chosen), {}
        end = time.monotonic()
        for i, step in enumerate(chosen, start=1):
            end += REHEARSAL if self.dry else step.limit
            print(f"[{i}/{len(chosen)}] {step.name}: {step.what} ...", end=" ", flush=True)
            status = self.step(step, end - time.monotonic())
            statuses[step.name] = status
            if step.essential and status != "passed" and not self.dry:
                print(f"nothing runs without {step.name!r}")
                return statuses | {other.name: "not started" for other in chosen[i:]}
        return statuses

    def step(self, step: Step, seconds: float) -> str:
        """Run one for at most so long, keep what it came to, write the archive, say it; its status."""
        log, outcomes = self.folder / f"{step.name}.log", self.folder / f"{step.name}.outcomes.jsonl"
        for before in (log, outcomes):
            before.unlink(missing_ok=True)
        start = time.time()
        status = self.why_not(step, seconds)
        if status is None:
            status = run(self.command(step, outcomes), log, self.environment(step), seconds)
        found = read_outcomes(outcomes) if outcomes.exists() else {}
        if status == "passed" and found and not found["tests"]["passed"]:
            status = "not available"  # every test was skipped: nothing was shown
        entry = {
            "what": step.what, "status": status, "seconds": round(time.time() - start, 1),
            "limit": step.limit, "predicted": step.predicted, "commit": self.commit,
            "date": str(date.today()),
            "compiled": compiled(self.work / CACHES["TRITON_CACHE_DIR"], start), **found,
        }  # fmt: skip
        self.entries[step.name] = entry
        self.write()
        print(summary(entry), flush=True)
        if status in BAD:
            print("".join(f"    {line}\n" for line in trouble(entry, log)), end="")
        return status

    def why_not(self, step: Step, seconds: float) -> str | None:
        """Status of a step that is not started, None where it can be."""
        if step.needs is not None:
            places = [*map(str, self.carried), *sys.path]
            if PathFinder.find_spec(step.needs, places) is None:
                return "not available"
        return "no time left" if not self.dry and step.predicted > seconds else None

    def command(self, step: Step, outcomes: Path) -> list[str]:
        words = step.rehearsal if self.dry and step.rehearsal is not None else step.command
        xdist = PathFinder.find_spec("xdist", [*map(str, self.carried), *sys.path])
        parallel = f"-n {len(os.sched_getaffinity(0))}" if xdist else ""
        places = {"python": sys.executable, "folder": self.folder, "outcomes": outcomes}
        return shlex.split(words.format(parallel=parallel, **places))

    def environment(self, step: Step) -> dict[str, str]:
        """Carried packages come last: each is only there where this Python has none."""
        path = [ROOT, ROOT / "python", *self.carried]
        caches = {name: str(self.work / folder) for name, folder in CACHES.items()}
        # The processes of a parallel step fill the cores.
        threads = {"OMP_NUM_THREADS": "1"} if "{parallel}" in step.command else {}
        python = {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONUNBUFFERED": "1"}
        return os.environ | python | caches | threads

    def write(self) -> None:
        """The results as they are now, and everything in the folder as one archive; never half of it."""
        facts = self.folder / "machine.json"
        machine = json.loads(facts.read_text()) if facts.exists() else None
        results = {"look": self.name, "machine": machine, "steps": self.entries}
        (self.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        self.archive.parent.mkdir(parents=True, exist_ok=True)
        partial = self.archive.with_suffix(".partial")
        with tarfile.open(partial, "w:gz") as archive:
            archive.add(self.folder, arcname=self.name)
        partial.replace(self.archive)


def run(command: list[str], log: Path, environment: dict[str, str], seconds: float) -> str:
    """Status of a command in a process group of its own, which is killed as a whole at the limit."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return STATUSES.get(process.wait(max(seconds, 0)), "failed")
        except subprocess.TimeoutExpired:
            return "cut off"
        finally:
            with suppress(ProcessLookupError):  # what has ended leaves none behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def compiled(cache: Path, since: float) -> dict[str, float]:
    """How many kernels were added to Triton's cache, and how long their compilations took together, from the
    first file of each to its last: several run at once."""
    spans = []
    for group in cache.glob("*/__grp__*.json"):  # written when the kernel is complete
        times = [path.stat().st_mtime for path in group.parent.iterdir()]
        if group.stat().st_mtime >= since:
            spans.append(max(times) - min(times))
    return {"kernels": len(spans), "seconds": round(sum(spans), 3)}


def summary(entry: dict) -> str:
    words = [entry["status"], f"{entry['seconds']:.0f} s"]
    if entry["compiled"]["kernels"]:
        words.append("{kernels} kernels compiled in {seconds:.0f} s".format(**entry["compiled"]))
    words += [f"{count} {name}" for name, count in entry.get("tests", {}).items() if count]
    return ", ".join(words)


def trouble(entry: dict, log: Path) -> list[str]:
    """What a step that failed says: its tests by name, or the end of its log."""
    named = [f"{name}: {reason}" for name, reason in entry.get("failed", {}).items()]
    named += [f"{name}: was running" for name in entry.get("unfinished", ())]
    return named or log.read_text().splitlines()[-25:]


def show_looks() -> None:
    """Steps with their seconds, and the sum of each look."""
    for name, look in LOOKS.items():
        print(f"{name}: {look.what}")
        print(f"    {'step':18} {'predicted':>9} {'limit':>6}")
        for step in look.steps:
            print(f"    {step.name:18} {step.predicted:9.0f} {step.limit:6.0f}  {step.what}")
        predicted, limit = START + look.predicted, START + look.limit
        print(f"    {'all':18} {predicted:9.0f} {limit:6.0f}  with {START} s to start the machine\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--look", choices=LOOKS, default="correct")
    parser.add_argument("--step", action="append", help="of the look, only this one (may be repeated)")
    parser.add_argument("--list", action="store_true", help="only list looks and steps with their seconds")
    parser.add_argument("--dry-run", action="store_true", help="all of it on the CPU, at tiny sizes")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", WORK)), help="folder")
    arguments = parser.parse_args()
    if arguments.list:
        show_looks()
        return 0
    look = LOOKS[arguments.look]
    unknown = set(arguments.step or ()) - {step.name for step in look.steps}
    if unknown:
        parser.error(f"no such step in {arguments.look}: {', '.join(sorted(unknown))}")
    chosen = [step for step in look.steps if arguments.step is None or step.name in arguments.step]
    this = Run(arguments.look, WORK, arguments.out.resolve(), arguments.dry_run)
    found = set(this.steps(chosen).values())
    print(f"results: {this.archive}")
    return 1 if found & BAD else 3 if found & NOT_RUN else 0


if __name__ == "__main__":
    sys.exit(main())
