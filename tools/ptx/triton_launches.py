"""Triton kernels on CPU tensors: they are compiled for a GPU, and the executor runs the PTX."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from diffratio_kernels._triton import stand_ins, tiles

from ..aot.compile import source_of
from ..aot.record import Specialization, specialize
from . import executor
from .executor import Options, machine

FORMAT = {"fp32": "f", "i32": "i", "i64": "q", "u1": "?"}
"""Type of a parameter that is no pointer -> how struct packs it."""


@dataclass
class Launches:
    """What runs Triton kernels on CPU tensors, and what it has run.

    counts: kernel -> its launches, and (kernel, what) -> sums: seconds, and what the executor counts.
    """

    architecture: int
    options: Options = field(default_factory=Options)
    counts: Counter = field(default_factory=Counter)
    _compiled: dict = field(default_factory=dict)

    def __call__(self, kernel, grid: tuple[int, ...], args: tuple, given: dict) -> None:
        """One launch, as `kernel[grid](*args, **given)` on a GPU, each with another order of programs."""
        spec = specialize(kernel, args, given)
        ptx, _, warps, shared = self._ready(spec)
        parameters, tensors = [], []
        for name, value in zip(kernel.arg_names, args, strict=False):
            kind = spec.signature[name]
            if isinstance(value, torch.Tensor) and kind != "constexpr":
                tensors.append(value)
                parameters.append(struct.pack("Q", value.data_ptr()))
            elif kind != "constexpr":
                parameters.append(struct.pack(FORMAT[kind], value))
        # The last ones are Triton's scratch memory: none here.
        parameters += [bytes(8)] * (len(ptx.parameters) - len(parameters))
        launched = ptx, grid, (32 * warps,), parameters, tensors, shared, self.options
        executor.counted(self.counts, spec.name, *launched)

    def variants(self) -> dict[str, list[tuple[str, dict[int, bool]]]]:
        """Kernel -> the PTX of each of its specializations, and line -> whether a thread has run it."""
        out = defaultdict(list)
        for (name, _), (ptx, text, *_) in self._compiled.items():
            out[name].append((text, ptx.lines()))
        return out

    def _ready(self, spec: Specialization) -> tuple:
        key = (spec.name, repr((spec.signature, spec.constants, spec.aligned, spec.options)))
        if key not in self._compiled:
            built = compiled(spec, self.architecture)
            text = built.asm["ptx"]
            ptx = machine().Kernel(text, spec.kernel.__name__)
            self._compiled[key] = ptx, text, built.metadata.num_warps, built.metadata.shared
        return self._compiled[key]


def compiled(spec: Specialization, architecture: int):
    """The kernel as far as PTX: ptxas is not run, and the cache has entries of its own for that."""
    with (
        mock.patch.object(CUDABackend, "make_cubin", lambda *_: b""),
        mock.patch.object(CUDABackend, "hash", lambda backend: f"ptx alone, {backend.target.arch}"),
    ):
        target = GPUTarget("cuda", architecture, 32)
        return triton.compile(source_of(spec), target=target, options=spec.options)


@contextmanager
def executed(architecture: int, options: Options | None = None) -> Iterator[Launches]:
    """Inside, backend="triton" takes CPU tensors and runs what is compiled for this architecture."""
    launches = Launches(architecture, options or Options())
    with (
        mock.patch.dict(stand_ins, {"cpu": launches}),
        mock.patch.object(tiles, "assumed_architecture", architecture),
    ):
        yield launches
