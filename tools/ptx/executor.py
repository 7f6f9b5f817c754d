"""Runs PTX on the CPU, as sm_80 and sm_90 would: matrix units, asynchronous copies, 16-bit floats.

The machine is C++ (src/), built at its first use into build/ptx. What it looks for is in tools/README.md.
"""

from __future__ import annotations

import os
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

from ..compile_once import load, made

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

    def compiled(source: Path) -> Path:
        command = ["g++", *FLAGS, *include, *flags, "-c", source]
        return made(folder / f"{source.stem}.o", command, [source, *depends])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [*pool.map(compiled, sources), *objects]
    return load(name, made(folder / f"{name}.so", ["g++", "-shared", "-pthread", *objects], objects))


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
