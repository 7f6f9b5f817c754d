"""The table of `make kernels`: one row for each kernel, configuration, dtype and architecture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import triton

from diffratio_kernels._native import cuda_unavailable

from . import TRITON_ARCHITECTURES
from .compile import compile_kernel
from .disassembly import ptxas_version
from .native import library_rows, nvcc_version
from .rules import broken
from .shipped import Job, jobs

KEY = ("source", "kernel", "label", "dtype", "architecture")
"""The columns that name a row, and by which rows are sorted."""


def report(
    architectures: tuple[int, ...],
    kernel: str | None = None,
    watch: Callable[[Iterable[dict], int], Iterable[dict]] = lambda rows, total: rows,
) -> dict:
    """Compile what ships for these architectures, or the kernels whose name holds `kernel`.

    `watch(rows, total)` hands on the compiled rows as they come. Returns the versions of the compilers, why
    there are no CUDA C++ kernels (or None), the rows, and in words the rules that they break.
    """
    to_do = jobs(tuple(a for a in architectures if a in TRITON_ARCHITECTURES), kernel)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Triton's passes and ptxas run outside Python's lock
        library = pool.submit(library_rows, architectures, kernel)
        rows = list(watch(pool.map(_triton_row, to_do), len(to_do))) + library.result()
    rows.sort(key=lambda row: tuple(row[column] for column in KEY))
    return {
        "toolchain": {"triton": triton.__version__, "ptxas": ptxas_version(), "nvcc": nvcc_version()},
        "no_cuda": cuda_unavailable,
        "broken": [f"{name(row)}: {words}" for row in rows for words in broken(row)],
        "rows": rows,
    }


def name(row: dict) -> str:
    """What a row is about."""
    source, kernel, label, dtype, architecture = (row[column] for column in KEY)
    return " ".join(filter(None, (source, kernel, label, dtype, f"sm_{architecture}")))


def to_json(found: dict) -> str:
    """The report as JSON, a row a line: what changed in the golden file can be read in a diff."""
    head = json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in found["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}'


def _triton_row(job: Job) -> dict:
    named = zip(KEY, ("triton", job.spec.name, job.label, job.dtype, job.architecture), strict=True)
    return dict(named) | compile_kernel(job.spec, job.architecture)
