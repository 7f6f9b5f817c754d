"""From a recorded kernel to its machine code and what it costs: registers, spills, instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .record import Specialization

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Threads, registers and bytes of shared memory of a multiprocessor; bytes one block can have.
_MULTIPROCESSOR = {
    80: (2048, 65536, 164 * 1024, 163 * 1024),
    90: (2048, 65536, 228 * 1024, 227 * 1024),
    100: (2048, 65536, 228 * 1024, 227 * 1024),
}
SHARED_LIMIT = {architecture: numbers[3] for architecture, numbers in _MULTIPROCESSOR.items()}


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> float:
    """Part of a multiprocessor's threads that can be resident at once."""
    all_threads, all_registers, all_shared, _ = _MULTIPROCESSOR[architecture]
    warps = threads // 32
    per_warp = -(-registers * 32 // 256) * 256  # registers are handed out by 256 to a warp
    blocks = min(all_threads // threads, all_registers // (per_warp * warps), 32)
    if shared:
        blocks = min(blocks, all_shared // (shared + 1024))  # the system keeps 1 KiB of each block
    return blocks * threads / all_threads


def compile_kernel(spec: Specialization, architecture: int) -> dict:
    """Compile for one architecture; returns the row of the report."""
    source = ASTSource(
        spec.kernel, spec.signature, constexprs=spec.constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in spec.aligned},
    )  # fmt: skip
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=spec.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, code = (_dump(flag, cubin.name) for flag in ("--dump-resource-usage", "--dump-sass"))
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK"))
    threads, shared = 32 * kernel.metadata.num_warps, kernel.metadata.shared
    return {
        "kernel": spec.name,
        "registers": registers,
        "stack": stack,
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "shared": shared,
        "threads": threads,
        "occupancy": round(occupancy(architecture, threads, registers, shared), 3),
        **instructions(code),
    }


def instructions(code: str) -> dict:
    """Matrix instructions by shape, and loads by width, in a disassembly."""
    matrix = Counter(re.findall(r"\b(HGMMA\.\w+|HMMA\.\w+)", code))
    loads = Counter(_width(match) for match in re.findall(r"\b(?:LDG|LDGSTS)\.\S+", code))
    asynchronous = Counter(_width(match) for match in re.findall(r"\bLDGSTS\.\S+", code))
    return {
        "matrix": dict(sorted(matrix.items())),
        "loads": dict(sorted(loads.items())),
        "async": dict(sorted(asynchronous.items())),
    }


def _width(instruction: str) -> int:
    """Bytes that one thread loads."""
    for mark, width in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1)):
        if mark in instruction:
            return width
    return 4


def _dump(flag: str, path: str) -> str:
    return subprocess.run([_CUOBJDUMP, flag, path], capture_output=True, text=True, check=True).stdout
