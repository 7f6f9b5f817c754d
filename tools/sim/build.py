"""Builds the simulator modules into build/sim.

python -m tools.sim.build [--sanitize] [controls | simulator]    prints where the module is
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

from .. import compile_once
from ..compile_once import ROOT

CSRC = ROOT / "csrc"
HERE = ROOT / "tools" / "sim"
OUT = ROOT / "build" / "sim"
INCLUDE = (CSRC, CSRC / "include", HERE / "src")
SYSTEM_INCLUDE = (pybind11.get_include(), sysconfig.get_paths()["include"])

COMPILER = "g++"
FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")

RUNTIME = tuple(HERE / "src" / name for name in ("fiber.cpp", "schedule.cpp", "report.cpp"))
MODULES: dict[str, Callable[[], list[Path]]] = {
    "simulator": lambda: [HERE / "src" / "bindings.cpp", *sorted((CSRC / "cuda").glob("*.cu"))],
    "controls": lambda: sorted((HERE / "controls").glob("*.c*")),
}


def _flags(source: Path, sanitize: bool, runtime_defines: tuple[str, ...]) -> tuple[str, ...]:
    """Only kernels and launchers run under the sanitizers; fiber.cpp says why the runtime does not."""
    if source.suffix == ".cu":
        return (*FLAGS, "-O1", "-g1", *(SANITIZERS if sanitize else ()))
    return (*FLAGS, "-O2", *runtime_defines) if source in RUNTIME else (*FLAGS, "-O0")


def _object(source: Path, flags: tuple[str, ...]) -> Path:
    include = [f"-I{path.relative_to(ROOT)}" for path in INCLUDE]
    include += [part for path in SYSTEM_INCLUDE for part in ("-isystem", path)]
    command = [COMPILER, "-x", "c++", *flags, *include, "-c", source.relative_to(ROOT)]
    depends = compile_once.with_includes(source, INCLUDE)
    return compile_once.made(OUT / f"{source.stem}.o", command, depends)


def build(name: str, sanitize: bool = False, runtime_defines: tuple[str, ...] = ()) -> Path:
    """The module `diffratio_<name>`, compiled where needed.

    runtime_defines: flags for fiber.cpp and schedule.cpp only, such as "-DDIFFRATIO_UCONTEXT".
    """
    sources = [*RUNTIME, *MODULES[name]()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda s: _object(s, _flags(s, sanitize, runtime_defines)), sources))
    command = [COMPILER, "-shared", *(SANITIZERS if sanitize else ()), *objects]
    return compile_once.made(OUT / f"diffratio_{name}.so", command, objects)


def load(name: str, sanitize: bool = False, runtime_defines: tuple[str, ...] = ()) -> ModuleType:
    """Import a module. The sanitized ones load only in a process that has `sanitizer_environment()`."""
    return compile_once.load(f"diffratio_{name}", build(name, sanitize, runtime_defines))


def sanitizer_environment() -> dict[str, str]:
    """For a process that loads a sanitized module: ASan, and what throws, must be there before Python is."""
    files = ("libasan.so", "libstdc++.so.6")
    libraries = [compile_once.run([COMPILER, f"-print-file-name={name}"]).strip() for name in files]
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
