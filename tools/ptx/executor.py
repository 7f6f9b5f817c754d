"""Runs PTX on the CPU, as sm_80 and sm_90 would: matrix units, asynchronous copies, 16-bit floats.

The machine is C++ (src/), built at its first use into build/ptx. What it looks for is in tools/README.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import torch

SOURCES = Path(__file__).with_name("src")
BUILD = Path(__file__).parents[2] / "build" / "ptx"
WHEN = {"early": 0, "late": 1, "random": 2}
FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fPIC"]
FLAGS += ["-fvisibility=hidden", "-pthread"]


@dataclass
class Options:
    """How launches run.

    seed: of the order of programs and warps, and of what is random. copies, products: cp.async and wgmma
    take effect "early", when issued, "late", when waited for, or one of the two at "random". races: look for
    races in shared memory. truncate: matrix units round towards zero. noise: what a GPU approximates is as
    wrong as PTX allows. turn: instructions at most before another warp runs. threads: of this machine.
    """

    seed: int = 0
    copies: str = "random"
    products: str = "random"
    races: bool = True
    truncate: bool = False
    noise: bool = False
    turn: int = 64
    threads: int = 1


def made(folder: Path, command: list, suffix: str, depends: Sequence[Path]) -> Path:
    """What a compiler makes of its last argument, once per state of the command and the files it depends on.

    Several test processes come here at once: the first of them compiles, the others wait.
    """
    command = list(map(str, command))
    state = hashlib.sha256(repr([command, _processor(), _version(command[0])]).encode())
    for path in sorted(depends):
        state.update(path.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{Path(command[-1]).stem}-{state.hexdigest()[:16]}{suffix}"
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_suffix(".partial" + suffix)
            done = subprocess.run([*command, "-o", partial], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            partial.replace(target)
    return target


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout


@cache
def _processor() -> str:
    return next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    )


def build(
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str],
    depends: Sequence[Path],
    objects: Sequence[Path] = (),
) -> ModuleType:
    """The extension module `name` from C++ sources and objects."""
    folder = BUILD / name
    include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(
            lambda source: made(
                folder, ["g++", *FLAGS, *include, *flags, "-c", source], ".o", [source, *depends]
            ),
            sources,
        )
        objects = [*compiled, *objects]
    shared = made(folder, ["g++", "-shared", "-pthread", *objects], ".so", objects)
    loader = importlib.machinery.ExtensionFileLoader(name, str(shared))
    spec = importlib.util.spec_from_file_location(name, shared, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@cache
def machine() -> ModuleType:
    """The C++ module: `Kernel` and `PtxError`."""
    return build("diffratio_ptx", sorted(SOURCES.glob("*.cpp")), [], sorted(SOURCES.glob("*.h")))


def extent(t: torch.Tensor) -> tuple[int, int]:
    """Where a tensor begins, and where its last element ends; a view has less than its storage."""
    if t.numel() == 0:
        return t.data_ptr(), t.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def launch(
    kernel,
    grid: Sequence[int],
    block: Sequence[int],
    parameters: Sequence[bytes],
    tensors: Sequence[torch.Tensor],
    shared: int,
    options: Options,
) -> dict[str, int]:
    """Run every program of a grid of a `machine().Kernel`.

    parameters: the bytes of each. tensors: what the kernel may touch. shared: bytes of dynamic shared memory.

    Returns: counts of warp instructions, and of what is suspicious without being an error: bytes that wgmma
    reads after cp.async without a proxy fence (`unfenced`), registers of its first operand that change
    (`overwritten`) and accumulators that are moved (`moved`) while it is in flight.

    Raises: machine().PtxError at the first fault, with the line, the instruction, the program and the thread.
    """
    three = [tuple([*size, 1, 1][:3]) for size in (grid, block)]
    ranges = sorted({pair for pair in map(extent, tensors) if pair[0] < pair[1]})
    how = asdict(options) | {"copies": WHEN[options.copies], "products": WHEN[options.products]}
    return kernel.launch(*three, list(parameters), ranges, shared=shared, **how)


def counted(counts: Counter, name: str, *launched) -> None:
    """The same of the kernel `name`, added to `counts`; the next launch has another order of programs."""
    *_, options = launched
    start = time.perf_counter()
    found = launch(*launched)
    options.seed += 1
    counts[name] += 1
    counts[name, "seconds"] += time.perf_counter() - start
    counts.update({(name, what): count for what, count in found.items()})
