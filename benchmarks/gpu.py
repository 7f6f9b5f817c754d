"""`make gpu`: all that needs a GPU, in pieces of at most 8 minutes; the next call goes on where one ended.

The pieces are in gpu.json; their `minutes` are what they should take with an H100-class GPU and 16 CPU cores.
A piece is done when it has passed on the sources as they are. Logs and the state are in out/gpu, results in
benchmarks/results. Exit code 0: every piece has passed; 1: one failed or ran out of time; 3: none failed, but
some were not run or cannot run here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from diffratio.bench.machine import commit  # noqa: E402

ROOT = Path.cwd()
STATE = ROOT / "out" / "gpu" / "state.json"
SOURCES = ("benchmarks", "csrc", "diffratio_kernels", "python", "tests")
SUFFIXES = {".py", ".toml", ".h", ".cuh", ".cu", ".cpp"}
TIME_IS_UP, NOT_AVAILABLE = 75, 77
"""Exit codes of a piece that goes on in the next call, and of one whose tool or device is not there."""


@dataclass(frozen=True)
class Piece:
    """One entry of gpu.json.

    command: {python} is the interpreter, {out} the folder of results, {parallel} pytest-xdist on all cores
    where it is installed. makes: a file without which the piece is not done. essential: without it the others
    are not started. budget: its tests write the largest shares of the error budget. needs: a package without
    which it cannot run here.
    """

    name: str
    what: str
    command: str
    minutes: float
    limit_minutes: float = 8.0
    makes: str | None = None
    essential: bool = False
    budget: bool = False
    needs: str | None = None


def sources() -> str:
    """A digest of all source files: what a piece passed on."""
    digest = hashlib.sha256()
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in sorted([*files, *ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("CMakeLists.txt")]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class State:
    """What every piece came to, on which sources; kept in a file."""

    def __init__(self):
        self.sources = sources()
        self.entries = json.loads(STATE.read_text()) if STATE.exists() else {}

    def of(self, piece: Piece) -> str:
        """ "passed", "failed", "out of time" or "not available" on these sources, else "not run"."""
        entry = self.entries.get(piece.name, {})
        made = piece.makes is None or (ROOT / piece.makes).exists()
        return entry["status"] if entry.get("sources") == self.sources and made else "not run"

    def put(self, piece: Piece, status: str, seconds: float) -> None:
        self.entries[piece.name] = {
            "status": status, "seconds": round(seconds, 1), "sources": self.sources, "commit": commit(ROOT),
            "date": str(date.today()),
        }  # fmt: skip
        STATE.parent.mkdir(parents=True, exist_ok=True)
        partial = STATE.with_suffix(".partial")
        partial.write_text(json.dumps(self.entries, indent=1) + "\n")
        partial.replace(STATE)


def run(piece: Piece, out: Path, minutes_left: float) -> tuple[str, float]:
    """Run a piece in a process group of its own, which is stopped at the limit; status and seconds."""
    if piece.needs is not None and importlib.util.find_spec(piece.needs) is None:
        STATE.parent.mkdir(parents=True, exist_ok=True)
        log(piece).write_text(f"{piece.needs} is not installed\n")
        return "not available", 0.0
    parallel = f"-n {len(os.sched_getaffinity(0))}" if importlib.util.find_spec("xdist") else ""
    command = shlex.split(piece.command.format(python=sys.executable, out=out, parallel=parallel))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]),
        "PYTHONUNBUFFERED": "1",
    }
    if "{parallel}" in piece.command:
        environment["OMP_NUM_THREADS"] = "1"  # the processes fill the cores
    if piece.budget:
        environment["DIFFRATIO_BUDGET"] = str(STATE.parent / f"{piece.name}-budget.json")
    STATE.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(log(piece), "w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(60 * min(piece.limit_minutes, minutes_left))
            status = {0: "passed", TIME_IS_UP: "out of time", NOT_AVAILABLE: "not available"}.get(
                code, "failed"
            )
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return status, time.monotonic() - start


def log(piece: Piece) -> Path:
    return STATE.parent / f"{piece.name}.log"


def write_results(pieces: list[Piece], state: State, out: Path) -> None:
    """What all pieces came to, with the machine that built the library and the error budget."""
    built = STATE.with_name("machine.json")
    checks = []
    for piece in pieces:
        entry = state.entries.get(piece.name, {})
        budget = STATE.parent / f"{piece.name}-budget.json"
        found = json.loads(budget.read_text()) if piece.budget and budget.exists() else {}
        checks.append({"name": piece.name, "what": piece.what, **entry, "status": state.of(piece), **found})
    out.mkdir(parents=True, exist_ok=True)
    results = {**(json.loads(built.read_text()) if built.exists() else {}), "checks": checks}
    (out / "gpu-checks.json").write_text(json.dumps(results, indent=1) + "\n")


def run_all(chosen: list[Piece], state: State, out: Path, minutes: float) -> bool:
    """Run the pieces in order, one line each; none runs on after `minutes`, or starts expected to do so.

    Whether the others could be started: every essential piece has passed.
    """
    end = time.monotonic() + 60 * minutes
    for i, piece in enumerate(chosen, start=1):
        minutes_left = (end - time.monotonic()) / 60
        if piece.minutes > minutes_left:
            print(f"[{i}/{len(chosen)}] {piece.name}: no time left")
            continue
        print(f"[{i}/{len(chosen)}] {piece.name}: {piece.what} ...", end=" ", flush=True)
        status, seconds = run(piece, out, minutes_left)
        state.put(piece, status, seconds)
        print(f"{status}, {seconds:.0f} s", flush=True)
        if status != "passed":
            print("".join(f"    {line}\n" for line in log(piece).read_text().splitlines()[-25:]), end="")
            if piece.essential:
                return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--piece", action="append", help="run this piece, done or not (may be repeated)")
    parser.add_argument("--list", action="store_true", help="only list the pieces and what they came to")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for the whole call")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of results")
    parser.add_argument("--pieces", type=Path, default=Path(__file__).with_name("gpu.json"))
    arguments = parser.parse_args()
    pieces = [Piece(**entry) for entry in json.loads(arguments.pieces.read_text())]
    state = State()
    if not arguments.list:
        unknown = set(arguments.piece or ()) - {piece.name for piece in pieces}
        if unknown:
            parser.error(f"no such piece: {', '.join(sorted(unknown))}")
        wanted = arguments.piece or [piece.name for piece in pieces if state.of(piece) != "passed"]
        chosen = [piece for piece in pieces if piece.name in wanted]
        started = run_all(chosen, state, arguments.out, arguments.minutes)
        if any(state.of(piece) == "passed" for piece in pieces):
            write_results(pieces, state, arguments.out)
    if arguments.list or started:
        width = max(len(piece.name) for piece in pieces)
        for piece in pieces:
            print(f"{piece.name:{width}} {state.of(piece):14} {piece.what}")
    if arguments.list:
        return 0
    found = {state.of(piece) for piece in pieces}
    if found & {"failed", "out of time"}:
        return 1
    return 0 if found == {"passed"} else 3


if __name__ == "__main__":
    sys.exit(main())
