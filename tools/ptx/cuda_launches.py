"""The CUDA C++ kernels on CPU tensors: nvcc compiles them for a GPU, and the executor runs the PTX.

nvcc compiles csrc/cuda twice: to PTX, and for this machine, where runtime.cpp takes the place of the CUDA
runtime under the launchers.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter, defaultdict
from pathlib import Path

import torch

from ..compile_once import made
from . import executor
from .executor import BUILD, Options, machine

HERE = Path(__file__).parent
CSRC, SIM = HERE.parents[1] / "csrc", HERE.parent / "sim" / "src"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
DEPENDS = sorted(path for at in (CSRC, SIM) for path in at.rglob("*") if path.suffix in (".cuh", ".h"))
INCLUDE = [f"-I{folder}" for folder in (CSRC, CSRC / "include", SIM)]


class CudaLaunches:
    """In the place of torch.ops.diffratio_cuda: an operator's kernels may touch the tensors of its call.

    counts: kernel -> its launches, and (kernel, what) -> sums: seconds, and what the executor counts.
    """

    def __init__(self, architecture: int, options: Options | None = None):
        self.architecture, self.options, self.counts = architecture, options or Options(), Counter()
        texts = [path.read_text() for path in ptx(architecture)]
        self._texts = {name: text for text in texts for name in re.findall(r"\.entry (\w+)", text)}
        self._kernels: dict[str, object] = {}
        self._tensors: list[torch.Tensor] = []
        self._operators = host_module()

    def __getattr__(self, name: str):
        operator = getattr(self._operators, name)

        def call(*arguments):
            self._operators.on_launch(self._launch)
            self._tensors = [t for t in arguments if isinstance(t, torch.Tensor)]
            operator(*arguments)

        return call

    def seed(self, seed: int) -> None:
        """The order of programs and warps in the next launches."""
        self.options.seed = seed

    def switches(self) -> int:
        """Instructions that warps have run so far."""
        return sum(count for key, count in self.counts.items() if key[1] == "instructions")

    def variants(self) -> dict[str, list[tuple[str, dict[int, bool]]]]:
        """Kernel -> for each of its instances the PTX, and line -> whether a thread has run it."""
        out = defaultdict(list)
        for name, kernel in self._kernels.items():
            out[short(name)].append((self._texts[name], kernel.lines()))
        return out

    def _launch(self, name: str, grid: tuple, block: tuple, shared: int, arguments: int) -> None:
        if name not in self._kernels:
            self._kernels[name] = machine().Kernel(self._texts[name], name)
        kernel = self._kernels[name]
        pointers = (ctypes.c_void_p * len(kernel.parameters)).from_address(arguments)
        given = [
            ctypes.string_at(at, size) for at, (_, size) in zip(pointers, kernel.parameters, strict=True)
        ]
        launched = kernel, grid, block, given, self._tensors, shared, self.options
        executor.counted(self.counts, short(name), *launched)


def short(name: str) -> str:
    """ "cuda gather_adaln" of a kernel's mangled name: some Triton kernels have the same."""
    return "cuda " + re.search(r"\d([a-z_]+)_kernel", name)[1]


def ptx(architecture: int) -> list[Path]:
    """What nvcc makes of each source."""
    flags = ["-std=c++20", "-O3", f"-arch=sm_{architecture}", *INCLUDE]
    return [
        made(BUILD / "cuda" / f"{source.stem}.ptx", ["nvcc", *flags, "-ptx", source], [source, *DEPENDS])
        for source in SOURCES
    ]


def host_module():
    """The launchers of csrc/cuda, which call back instead of launching."""
    flags = ["-std=c++20", "-O1", "-gencode", "arch=compute_90,code=compute_90", "-Xcompiler", "-fPIC"]
    flags += ["-cudart", "none", *INCLUDE]
    objects = [
        made(BUILD / "cuda" / f"{source.stem}.o", ["nvcc", *flags, "-c", source], [source, *DEPENDS])
        for source in SOURCES
    ]
    return executor.build("diffratio_cuda_on_ptx", [HERE / "runtime.cpp"], INCLUDE, DEPENDS, objects)
