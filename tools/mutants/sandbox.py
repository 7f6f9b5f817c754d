"""Copies of the checkout in which one mutant at a time is planted and tests are run."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..sim.build import sanitizer_environment

HERE = Path(__file__).parent
TIMEOUT = 120
"""Seconds for one selection of tests; each takes less than 30."""

COMPILED = ("csrc/cpu/", "csrc/ops")
"""What the native library is made of; the sandbox compiles it where one of these is planted in."""

NOT_RUN = (
    "benchmarks/", "docs/", "tests/mutants/", ".ci/", "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
    *(f"tools/{name}" for name in ("gpu/", "mutants/", "portable/", "toolchains/", "tune/", "README.md")),
)  # fmt: skip
"""What no mutant's tests read: it may change between runs that continue each other."""


def checkout_files(root: Path) -> dict[str, bytes]:
    """Every file of a checkout that git does not ignore, and the native library, by path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    library = [str(path.relative_to(root)) for path in root.glob("diffratio_kernels/*.so")]
    files = (path for path in (*listed, *library) if not path.startswith(NOT_RUN))
    return {path: (root / path).read_bytes() for path in files if (root / path).is_file()}


def digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()[:16]


def mutated(text: str, edits: dict[str, str]) -> str:
    for find, replace in edits.items():
        if text.count(find) != 1:
            raise ValueError(f"must occur once, not {text.count(find)} times: {find}")
        text = text.replace(find, replace)
    return text


@dataclass(frozen=True)
class Outcome:
    """how: "passed", "failed", "crashed" or "timeout"; "broken" where no test came to judge.

    test: the first that failed, or the one that ran when the process ended. message: what it said.
    """

    how: str
    test: str
    message: str
    seconds: float

    @property
    def caught(self) -> bool:
        return self.how in ("failed", "crashed", "timeout")


class Sandbox:
    """A copy of a checkout; what was built in it (build/) stays from run to run."""

    def __init__(self, tree: Path, files: dict[str, bytes]):
        self.tree, self.files, self.stale = tree.resolve(), files, False
        for path in [p for p in self.tree.rglob("*") if p.is_file()]:
            name = path.relative_to(self.tree).as_posix()
            if name not in files and not name.startswith("build/"):
                path.unlink()
        for name in files:
            self._restore(name)

    def _restore(self, name: str) -> None:
        (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (self.tree / name).write_bytes(self.files[name])

    @contextmanager
    def planted(self, file: str, edits: dict[str, str]) -> Iterator[None]:
        """Inside, each text of `edits` in a file is replaced by another."""
        (self.tree / file).write_text(mutated(self.files[file].decode(), edits))
        self.stale = file.startswith(COMPILED)
        try:
            yield
        finally:
            self._restore(file)
            if self.stale:
                for name in self.files:
                    if name.endswith(".so"):
                        self._restore(name)
            self.stale = False

    def run(self, tests: str, sanitize: bool = False) -> Outcome:
        """What pytest says of a selection of tests; those of tests/sim can run under ASan and UBSan."""
        start = time.monotonic()
        if self.stale:
            code, text = self._compile()
            if code != 0:
                return Outcome("broken", "CMakeLists.txt", text[-2000:], time.monotonic() - start)
        if tests.startswith("tests/sim"):
            build = [sys.executable, "-m", "tools.sim.build", *(["--sanitize"] if sanitize else [])]
            code, text = self._process(build, self._environment(sanitize=False))
            if code != 0:
                return Outcome("broken", "tools/sim/build.py", text[-2000:], time.monotonic() - start)
        report = self.tree / "build" / "report.jsonl"
        report.parent.mkdir(exist_ok=True)
        report.write_text("")
        # Sanitizers report to the file descriptor, past what pytest keeps to itself with its usual capture.
        pytest = [sys.executable, "-m", "pytest", "-x", "-p", "mutant_report", "-p", "no:cacheprovider"]
        pytest += ["-p", "no:xdist", "--capture=sys", *shlex.split(tests)]
        code, text = self._process(pytest, self._environment(sanitize) | {"MUTANT_REPORT": str(report)})
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        self._check_imports(lines)
        return Outcome(*judge(lines, code, text), time.monotonic() - start)

    def _compile(self) -> tuple[int | None, str]:
        """The native library, from the sources of this copy."""
        torch = importlib.util.find_spec("torch")
        options = ["-G", "Ninja", "-S", str(self.tree), f"-DTORCH_DIR={Path(torch.origin).parent}"]
        build = str(self.tree / "build" / "native")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = self._environment(sanitize=False) | {"PATH": path}
        code, text = self._process(["cmake", *options, "-B", build], environment)
        if code == 0:
            code, text = self._process(["cmake", "--build", build, "--target", "_C", "-j1"], environment)
        if code == 0:
            library = Path(build) / "_C.abi3.so"
            (self.tree / "diffratio_kernels" / library.name).write_bytes(library.read_bytes())
        return code, text

    def _environment(self, sanitize: bool) -> dict[str, str]:
        path = os.pathsep.join(map(str, (self.tree, self.tree / "python", HERE)))
        fixed = {
            "PYTHONPATH": path,
            "CUDA_VISIBLE_DEVICES": "",  # the guards of the interpreter and the simulator are for the CPU
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        if not sanitize:
            return os.environ | fixed
        return sanitizer_environment() | fixed | {"DIFFRATIO_SANITIZE": "1"}

    def _process(self, command: list[str], environment: dict[str, str]) -> tuple[int | None, str]:
        """Exit status (None after the timeout) and output; nothing that it started outlives it."""
        process = subprocess.Popen(
            command, cwd=self.tree, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:
            text, _ = process.communicate(timeout=TIMEOUT)
            return process.returncode, text
        except subprocess.TimeoutExpired:
            return None, f"more than {TIMEOUT} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _check_imports(self, lines: list[dict]) -> None:
        files = [Path(file) for line in lines for file in line.get("imported", [])]
        foreign = [file for file in files if not file.resolve().is_relative_to(self.tree)]
        if foreign or (any("started" in line for line in lines) and not files):
            raise RuntimeError(f"tests in {self.tree} imported {foreign[0] if foreign else 'no package'}")


def judge(lines: list[dict], code: int | None, text: str) -> tuple[str, str, str]:
    """(how, test, message) of a pytest run: the lines of mutant_report.py, its exit status and its output.

    Only a test itself is a judge: a fixture that fails or a file that does not import proves nothing.
    """
    started = [line["started"] for line in lines if "started" in line]
    failed = next((line for line in lines if "failed" in line), None)
    finished = next((line["finished"] for line in lines if "finished" in line), None)
    if failed is not None:
        return "failed" if failed["phase"] == "call" else "broken", failed["failed"], failed["message"]
    if finished == 0:
        return "passed", "", ""
    if not started or finished is not None:
        return "broken", "", text[-2000:]
    if code is None:
        return "timeout", started[-1], text
    return "crashed", started[-1], f"exit status {code}\n{text[-2000:]}"
