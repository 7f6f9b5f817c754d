"""What machine code says of a kernel: its resources, and its instructions by kind and width."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import triton

from .descriptors import wrong_descriptors
from .flight import touched_in_flight
from .occupancy import occupancy

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_WIDTHS = {"U8": "1", "S8": "1", "U16": "2", "S16": "2", "64": "8", "128": "16", "256": "32"}
_MEMORY = {"LDG": "loads", "LDGSTS": "async", "UBLKCP": "async", "UTMALDG": "async", "STG": "stores"}
_RESOURCES = {"registers": "REG", "stack": "STACK", "local": "LOCAL", "shared": "SHARED"}


def dump(path: str | Path, *flags: str) -> str:
    """What cuobjdump, as it comes with Triton, prints about a cubin or a library."""
    command = [_TOOLS / "cuobjdump", *flags, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ptxas_version() -> str:
    """Version of the assembler that Triton runs for sm_80 and sm_90."""
    done = subprocess.run([_TOOLS / "ptxas", "--version"], capture_output=True, text=True, check=True)
    return re.search(r"\bV([\d.]+)", done.stdout).group(1)


def resources(usage: str) -> dict[str, int]:
    """Registers, and bytes of stack, local and static shared memory, of one line of the resource usage."""
    return {name: int(re.search(rf"\b{mark}:(\d+)", usage).group(1)) for name, mark in _RESOURCES.items()}


def figures(architecture: int, threads: int, resources: dict[str, int], code: str) -> dict:
    """The part of a row that does not depend on where the code comes from."""
    registers, shared = resources["registers"], resources["shared"]
    return {
        **resources,
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "wrong_descriptors": wrong_descriptors(code),
        "touched_in_flight": touched_in_flight(code),
        "threads": threads,
        "occupancy": round(occupancy(architecture, threads, registers, shared), 4),
        "mma_useful": None,
        **instructions(code),
    }


def instructions(code: str) -> dict[str, dict[str, int]]:
    """Matrix instructions by shape; global loads, asynchronous loads and stores by the bytes of one thread.

    "bulk" are copies by the tensor memory engine, whose size is no part of the instruction.
    """
    found = {"matrix": Counter(), "loads": Counter(), "async": Counter(), "stores": Counter()}
    for name, modifiers in re.findall(r"\b(HMMA|HGMMA|LDG|LDGSTS|STG|UBLKCP|UTMALDG)\.(\S+)", code):
        modifiers = modifiers.split(".")
        if name in _MEMORY:
            found[_MEMORY[name]][_width(name, modifiers)] += 1
        else:
            found["matrix"][f"{name}.{modifiers[0]}"] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in found.items()}


def _width(name: str, modifiers: list[str]) -> str:
    if name.startswith("U"):
        return "bulk"
    return next((_WIDTHS[mark] for mark in modifiers if mark in _WIDTHS), "4")


def matrix_flops(matrix: dict[str, int], threads: int) -> int:
    """FLOPs that a block issues when every matrix instruction runs once.

    HMMA.16816 is a warp's product of 16 x 8 x 16, HGMMA.64xNxK a warpgroup's of 64 x N x K.
    """
    total = 0
    for instruction, count in matrix.items():
        name, shape = instruction.split(".")
        if name == "HMMA":
            m, n, k, group = *{"16816": (16, 8, 16), "1688": (16, 8, 8)}[shape], 32
        else:
            m, n, k, group = *map(int, shape.split("x")), 128
        total += count * 2 * m * n * k * threads // group
    return total
