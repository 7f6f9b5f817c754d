"""C++ compiled once per state of its sources, also where several test processes want it at the same time."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def made(target: Path, command: Sequence[str | Path], depends: Iterable[Path]) -> Path:
    """Run a compiler, unless what it makes is there; its name is that of `target`, with a digest.

    depends: files whose contents decide, besides the command, the compiler's version and this processor.

    Raises: RuntimeError with what the compiler said.
    """
    command = list(map(str, command))
    state = hashlib.sha256(repr([command, _processor(), _version(command[0])]).encode())
    for path in sorted(depends):
        state.update(path.read_bytes())
    target.parent.mkdir(parents=True, exist_ok=True)
    target = target.with_name(f"{target.stem}-{state.hexdigest()[:16]}{target.suffix}")
    if target.exists():
        return target
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_suffix(f".partial{target.suffix}")
            run([*command, "-o", str(partial)])
            partial.replace(target)
    return target


def run(command: Sequence[str]) -> str:
    """What a command prints; it runs in the root of the project, without the libraries of a sanitizer."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


@cache
def _version(compiler: str) -> str:
    return run([compiler, "--version"])


@cache
def _processor() -> str:
    """What -march=native compiles for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), "")


def with_includes(source: Path, include: Sequence[Path]) -> set[Path]:
    """A source and all headers of this project that it includes."""
    found, open_ = set(), [source.resolve()]
    while open_:
        path = open_.pop()
        if path not in found:
            found.add(path)
            names = re.findall(r'^\s*#\s*include\s*["<]([^">]+)', path.read_text(), re.MULTILINE)
            for name in names:
                candidates = (folder / name for folder in (path.parent, *include))
                open_ += [file.resolve() for file in candidates if file.exists()][:1]
    return found


def load(name: str, path: Path) -> ModuleType:
    """Import an extension module."""
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
