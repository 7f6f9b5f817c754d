"""Attention of libraries and of our kernel with every tile that may be the best, in CUDA graphs: rows of the
suite "attention", appended to the file of this machine in --out FOLDER.

Kept counts of 1024 and 4096 tokens, heads of 72, and attention to 300 text tokens: the tile decides how much
of the work is padding. Without a GPU a small shape. Exit code 1: our kernel was refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness.machine import machine
from benchmarks.harness.measure import measure
from benchmarks.harness.subject import Candidate, Subject
from diffratio.evaluation.flops import TransformerShape, step_cost
from diffratio.evaluation.results import append, file_of
from diffratio_kernels import attention, reference
from diffratio_kernels._triton import tiles
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.types import Seqlens

from .candidates import ATTENTION, SMALL
from .subjects import held_tile

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float16)
HEADS, HEAD_DIM = (16 if GPU else 2), 72
SHAPES = ((16, 1024, 1024), (16, 512, 512), (16, 308, 308), (2, 2048, 2048), (16, 512, 300))
"""Samples, queries of each, keys of each."""
ROUNDS = 15
LIBRARIES = ("sdpa", "flash", "cudnn", "varlen", "flash_attn")
"""The first, torch's own choice, is the baseline."""

Case = dict[str, object]
"""Arguments of `attention`."""


def subjects() -> Iterator[Subject]:
    """One per shape."""
    able = ATTENTION[tiles.architecture(torch.device(DEVICE))] if GPU else SMALL[True]
    for batch, queries, keys in SHAPES if GPU else ((2, 17, 5),):
        width = HEADS * HEAD_DIM
        transformer = TransformerShape(1, width, HEADS, queries, keys)
        sizes = {"batch": batch, "itemsize": DTYPE.itemsize}
        cost = step_cost("cross_attention", transformer, queries, **sizes)
        shape = {"batch": batch, "tokens": queries, "width": width, "heads": HEADS, "text": keys}
        candidate = partial(Candidate, flops=cost.flops, moved=cost.bytes)
        ways = {name: partial(_by_library, name) for name in LIBRARIES}
        by_tile = {f"triton {' x '.join(map(str, t))}": t for t in able}
        ours = {"triton": _triton} | {name: partial(_with_tile, tile) for name, tile in by_tile.items()}
        candidates = [candidate(name, run, partial(_check, name, run)) for name, run in ways.items()]
        candidates += [
            candidate(name, run, partial(_check, name, run), ours=True) for name, run in ours.items()
        ]
        name = "self-attention" if queries == keys else "cross-attention"
        make = partial(_case, batch, queries, keys)
        yield Subject("attention", name, DTYPE, shape, make, cost.bytes, tuple(candidates))


def _case(batch: int, queries: int, keys: int, seed: int) -> Case:
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(batch * rows, HEADS, HEAD_DIM, generator=generator, device=DEVICE).to(DTYPE)

    offsets = (reference.cu_seqlens_of([rows] * batch, torch.device(DEVICE)) for rows in (queries, keys))
    packing = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), offsets, strict=True))
    return {"query": draw(queries), "key": draw(keys), "value": draw(keys), **packing,
            "max_seqlen_q": queries, "max_seqlen_k": keys}  # fmt: skip


def _by_library(name: str, case: Case) -> Tensor:
    if name != "flash":
        return attention(**case, backend=name)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return attention(**case, backend="sdpa")


def _triton(case: Case) -> Tensor:
    """With the tile of the package's table."""
    return attention(**case, backend="triton")


def _with_tile(tile: tuple[int, ...], case: Case) -> Tensor:
    with held_tile(tile):
        return _triton(case)


def _check(name: str, run: Callable[[Case], Tensor], case: Case) -> None:
    """Assert that the last sample is within the error budget."""
    counts = case["max_seqlen_q"], case["max_seqlen_k"]
    rows = {"query": counts[0], "key": counts[1], "value": counts[1]}
    last = [case[name][-count:] for name, count in rows.items()]
    device = torch.device(DEVICE)
    seqlens = Seqlens(*(reference.cu_seqlens_of([count], device) for count in counts), *counts)
    peer, gold = (
        reference.attention(*last, seqlens),
        reference.attention(*(t.double() for t in last), seqlens),
    )
    check_budget(f"attention {name}", run(case)[-counts[0] :], peer, gold, terms=counts[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out, facts, failed = parser.parse_args().out, machine(), False
    for subject in subjects():
        rows = measure(subject, DEVICE, ROUNDS, progress=False, modes=("graph",) if GPU else None)
        append(file_of(out, facts["device"]), facts, rows)
        failed |= any("failed" in row for row in rows)
        print(subject.name, subject.shape)
        for row in rows:
            figures = f"{row['seconds'] * 1e6:9.1f} us {row['cache']}" if "seconds" in row else row["refused"]
            print(f"  {row['name']:24} {figures}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
