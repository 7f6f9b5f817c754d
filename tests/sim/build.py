"""Builds the simulator modules into build/sim: once per state of their sources, safe for parallel tests.

python tests/sim/build.py [--sanitize] [controls | simulator]    prints where the module is
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
OUT = ROOT / "build" / "sim"
INCLUDE = (CSRC / "include", CSRC / "sim")
SYSTEM_INCLUDE = (pybind11.get_include(), sysconfig.get_paths()["include"])

COMPILER = "g++"
FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")

RUNTIME = tuple(CSRC / "sim" / name for name in ("fiber.cpp", "schedule.cpp", "report.cpp"))
MODULES: dict[str, Callable[[], list[Path]]] = {
    "simulator": lambda: [CSRC / "sim" / "bindings.cpp", *sorted((CSRC / "cuda").glob("*.cu"))],
    "controls": lambda: sorted((CSRC / "sim" / "controls").glob("*.c*")),
}


def _flags(source: Path, sanitize: bool, runtime_defines: tuple[str, ...]) -> tuple[str, ...]:
    """Only kernels and launchers run under the sanitizers; fiber.cpp says why the runtime does not."""
    if source.suffix == ".cu":
        return (*FLAGS, "-O1", "-g1", *(SANITIZERS if sanitize else ()))
    return (*FLAGS, "-O2", *runtime_defines) if source in RUNTIME else (*FLAGS, "-O0")


def with_includes(source: Path, seen: dict[Path, bytes]) -> dict[Path, bytes]:
    """The bytes of a source and of all headers of this project that it includes."""
    if source not in seen:
        seen[source] = source.read_bytes()
        for name in re.findall(rb'^\s*#\s*include "(.+)"', seen[source], re.MULTILINE):
            found = [f for f in (p / name.decode() for p in (source.parent, *INCLUDE)) if f.exists()]
            if found:
                with_includes(found[0].resolve(), seen)
    return seen


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _run(command: list[str]) -> str:
    outside_asan = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=outside_asan)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _made(target: Path, command: list[str]) -> Path:
    """Run the command, which ends in `-o`, unless its target is there; a target appears when complete."""
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}.partial")
        _run([*command, str(partial)])
        partial.replace(target)
    return target


def _object(source: Path, flags: tuple[str, ...], compiler: str) -> Path:
    contents = sorted(with_includes(source, {}).items())
    target = OUT / f"{source.stem}-{_digest(compiler, flags, SYSTEM_INCLUDE, contents)}.o"
    include = [part for path in INCLUDE for part in ("-I", str(path.relative_to(ROOT)))]
    include += [part for path in SYSTEM_INCLUDE for part in ("-isystem", path)]
    name = str(source.relative_to(ROOT))
    return _made(target, [COMPILER, "-x", "c++", *flags, *include, "-c", name, "-o"])


@contextmanager
def _locked() -> Iterator[None]:
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(name: str, sanitize: bool = False, runtime_defines: tuple[str, ...] = ()) -> Path:
    """The module `diffratio_<name>`, compiled where needed.

    runtime_defines: flags for fiber.cpp and schedule.cpp only, such as "-DDIFFRATIO_UCONTEXT".
    """
    sources = [*RUNTIME, *MODULES[name]()]
    with _locked(), ThreadPoolExecutor(os.cpu_count()) as pool:
        compiler = _run([COMPILER, "--version"])
        jobs = [pool.submit(_object, s, _flags(s, sanitize, runtime_defines), compiler) for s in sources]
        objects = [str(job.result()) for job in jobs]
        target = OUT / f"diffratio_{name}-{_digest(sanitize, objects)}.so"
        return _made(target, [COMPILER, "-shared", *(SANITIZERS if sanitize else ()), *objects, "-o"])


def load(name: str, sanitize: bool = False, runtime_defines: tuple[str, ...] = ()) -> ModuleType:
    """Import a module. The sanitized ones load only in a process that has `sanitizer_environment()`."""
    path = str(build(name, sanitize, runtime_defines))
    loader = importlib.machinery.ExtensionFileLoader(f"diffratio_{name}", path)
    spec = importlib.util.spec_from_file_location(f"diffratio_{name}", path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def sanitizer_environment() -> dict[str, str]:
    """For a process that loads a sanitized module: ASan, and what throws, must be there before Python is."""
    libraries = [
        _run([COMPILER, f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libstdc++.so.6")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="simulator", choices=MODULES)
    parser.add_argument("--sanitize", action="store_true")
    arguments = parser.parse_args()
    sys.stdout.write(f"{build(arguments.name, arguments.sanitize)}\n")
