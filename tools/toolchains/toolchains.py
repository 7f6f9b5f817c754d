"""`make toolchains`: the kernels under every Triton, Python and torch that is supported, on a CPU.

For each Triton the ahead-of-time gate compiles whatever ships, and its interpreter runs the tests of the
Triton kernels. For each Python a torch and a Triton of its own run a part of them, and the native library,
which is built once. What is installed stays in build/; what each step printed, in build/toolchains.

rows: kernels compiled; listed: those of them that known_spills.json lets spill for now; tests: that passed.

python -m tools.toolchains.toolchains [--json] [text ...]    only the steps whose name holds one of the texts
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from .known_spills import judged
from .without_cuda import add_empty_libraries

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
LOGS = BUILD / "toolchains"
# Triton: what its interpreter needs besides. That of 3.6 cannot count loops under numpy 2.4.
TRITONS = {"3.6.0": ["numpy<2.4"], "3.7.1": [], "3.8.0": [], "3.9.0": []}
# Python: torch and Triton. 3.11 with the pinned torch is what runs the steps of the Tritons.
PYTHONS = {"3.10": ("2.10.0", "3.6.0"), "3.12": ("2.12.1", "3.8.0"), "3.13": ("2.14.1", "3.9.0")}
BESIDE_TORCH = [
    "filelock", "typing_extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools", "numpy",
    "pytest", "pytest-xdist",
]  # fmt: skip
INTERPRETED = [
    "tests/kernels/triton", "tests/testing/test_interpreter_controls.py",
    "tests/testing/test_interpreter_products.py",
]  # fmt: skip
ON_EACH_PYTHON = [
    "tests/kernels/test_native_rows.py", "tests/kernels/test_native_gelu.py",
    "tests/ops/properties/test_opcheck.py", "tests/ops/properties/test_autocast.py",
    "tests/kernels/triton/test_two_bin.py", "tests/kernels/triton/test_score_matrices.py",
    "tests/testing/test_interpreter_controls.py",
]  # fmt: skip
VERSIONS = """
import json, platform, torch, triton
from diffratio_kernels import _native
print(json.dumps([platform.python_version(), torch.__version__, triton.__version__, _native.unavailable]))
"""
LIMIT = 3600  # seconds of a step; none takes a third of it


class NotRun(Exception):
    """Why a step cannot be run on this machine."""


@dataclass
class Outcome:
    """What a step found: `failures` and `not_run` in words."""

    name: str
    ran: str = ""
    failures: list[str] = field(default_factory=list)
    rows: int = 0
    listed: int = 0
    tests: int = 0
    not_run: str = ""
    seconds: float = 0

    def line(self) -> str:
        figures = "".join(f"{figure or '':>8}" for figure in (self.rows, self.listed, self.tests))
        state = f"not run: {self.not_run}" if self.not_run else f"{len(self.failures)} failures"
        return "\n  ".join([f"{self.name:<28}{self.seconds:8.0f}{figures}  {state}", *self.failures])


HEADING = f"{'step':<28}{'seconds':>8}{'rows':>8}{'listed':>8}{'tests':>8}"


def steps() -> dict[str, Callable[[str], Outcome]]:
    """Every step by its name."""
    found = {}
    for version in TRITONS:
        found[f"gate, Triton {version}"] = partial(gate, version)
        found[f"interpreter, Triton {version}"] = partial(interpreter, version)
    for version, (torch, triton) in PYTHONS.items():
        found[f"Python {version}, torch {torch}"] = partial(on_python, version, torch, triton)
    return found


def gate(version: str, name: str) -> Outcome:
    """Compile whatever ships with one Triton; the rules hold for all of them."""
    command = [sys.executable, "-m", "tools.aot.kernels", "--json"]
    done = run(name, command, with_triton(version), interpreted=False)
    if done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, "tools.aot.kernels", stderr=done.stderr)
    found = json.loads(done.stdout)
    ran = f"Triton {found['toolchain']['triton']}"
    failures, listed = judged(found, version)
    failures += [line for line in done.stderr.splitlines() if "Warning" in line]
    return Outcome(name, ran, failures + unexpected(ran, version), len(found["rows"]), listed)


def interpreter(version: str, name: str) -> Outcome:
    """The tests of the Triton kernels, and the controls of their guards, in the interpreter of one Triton."""
    return tested(name, sys.executable, with_triton(version), INTERPRETED, version)


def on_python(version: str, torch: str, triton: str, name: str) -> Outcome:
    """The native library and the interpreter under one Python with its own torch and Triton."""
    return tested(name, environment(version, torch, triton), [], ON_EACH_PYTHON, version, torch, triton)


def tested(name: str, python: Path | str, paths: list[Path], tests: list[str], *versions: str) -> Outcome:
    """Run tests in a child, which must have the versions that it is meant to have and the native library."""
    asked = run(f"{name}, versions", [python, "-c", VERSIONS], paths, check=True)
    *ran, no_library = json.loads(asked.stdout)
    ran = "Python {}, torch {}, Triton {}".format(*ran)
    failures = unexpected(ran, *versions) + [f"native library: {no_library}"] * bool(no_library)
    done = run(name, [python, "-m", "pytest", "-n", "auto", "-rfE", "-p", "no:cacheprovider", *tests], paths)
    passed = re.search(r"(\d+) passed", done.stdout)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed and (done.returncode or not passed):
        failed = [f"pytest ended with {done.returncode}: {log_of(name)}"]
    return Outcome(name, ran, failures + failed, tests=int(passed[1]) if passed else 0)


def unexpected(ran: str, *versions: str) -> list[str]:
    """A step that did not run with the versions that it is there for."""
    return [f"ran with {ran}, not with {version}" for version in versions if f" {version}" not in ran]


def with_triton(version: str) -> list[Path]:
    """The folder of a Triton that is not the pinned one; it is installed if it is not there."""
    if f"triton=={version}" in (ROOT / "constraints.txt").read_text().split():
        return []
    folder = BUILD / f"triton-{version}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        pip(sys.executable, "--no-deps", "--target", part, f"triton=={version}", *TRITONS[version])
        part.rename(folder)
    return [folder]


def environment(version: str, torch: str, triton: str) -> Path:
    """The interpreter of an environment of its own for one Python, which is made if it is not there."""
    folder = BUILD / f"python-{version}"
    python, ready = folder / "bin/python", folder / f".torch-{torch}-triton-{triton}"
    if ready.exists():
        return python
    asked = os.environ | {"PYENV_VERSION": version}  # without it the commands of pyenv start one version only
    try:
        subprocess.run([f"python{version}", "-m", "venv", folder], env=asked, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotRun(f"no python{version} that makes environments") from error
    pip(python, "--no-deps", f"torch=={torch}", f"triton=={triton}")
    pip(python, *BESIDE_TORCH)
    (libraries,) = folder.glob("lib/python*/site-packages/torch/lib")
    add_empty_libraries(libraries)
    ready.touch()
    return python


def pip(python: Path | str, *arguments: str | Path) -> None:
    run("pip", [python, "-m", "pip", "install", "-q", "--no-compile", *arguments], check=True)


def run(
    name: str, command: list, paths: list[Path] = (), interpreted: bool = True, check: bool = False
) -> subprocess.CompletedProcess:
    """A child that finds its packages in `paths` first, then this checkout; what it prints is kept."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    settings = {
        "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT, ROOT / "python"])),
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    } | ({"TRITON_INTERPRET": "1"} if interpreted else {})  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=inherited | settings, capture_output=True, text=True, timeout=LIMIT
    )
    log_of(name).parent.mkdir(parents=True, exist_ok=True)
    log_of(name).write_text(done.stdout + done.stderr)
    if check:
        done.check_returncode()
    return done


def log_of(name: str) -> Path:
    return LOGS / f"{re.sub(r'[^0-9A-Za-z.]+', '-', name)}.txt"


def outcome(name: str, step: Callable[[str], Outcome]) -> Outcome:
    """Run a step; whatever stops it is its failure, and the others go on."""
    begin = time.monotonic()
    try:
        found = step(name)
    except NotRun as why:
        found = Outcome(name, not_run=str(why))
    except subprocess.CalledProcessError as error:
        found = Outcome(name, failures=[f"{error}\n{error.stderr}"])
    except Exception as error:
        found = Outcome(name, failures=[repr(error)])
    found.seconds = round(time.monotonic() - begin, 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", help="run only the steps whose name holds one of these")
    parser.add_argument("--json", action="store_true", help="print every outcome as JSON")
    arguments = parser.parse_args()
    chosen = {
        name: step
        for name, step in steps().items()
        if not arguments.texts or any(text in name for text in arguments.texts)
    }
    if not chosen:
        parser.error(f"no step is called {arguments.texts}: {', '.join(steps())}")
    out, found = sys.stderr if arguments.json else sys.stdout, []
    print(HEADING, file=out, flush=True)
    for name, step in tqdm(chosen.items(), disable=not sys.stderr.isatty()):
        found.append(outcome(name, step))
        tqdm.write(found[-1].line(), file=out)
        out.flush()
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    return int(any(one.failures for one in found))


if __name__ == "__main__":
    sys.exit(main())
