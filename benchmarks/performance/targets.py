"""What is promised of a GPU, and what was measured of it: bf16, B=16, N=1024, in CUDA graphs, cold cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffratio.evaluation.results import Roof, select

OURS = ("mod_block cuda", "mod_block triton", "mod_block cpu")
"""Row kernels in the order of preference: the first that was measured counts."""
BEST_ATTENTION = ("dense, compiled, flash", "dense, compiled, cudnn")


@dataclass(frozen=True)
class Target:
    """measured: None where a row is missing. least: whether it must not be smaller, instead of not larger."""

    what: str
    must: float
    measured: float | None
    least: bool = False

    @property
    def holds(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.must if self.least else self.measured <= self.must


class Rows:
    """Rows of one machine and dtype by name and kept part; None where one was not measured."""

    def __init__(self, rows: list[dict], batch: int, tokens: int):
        mode = "graph" if any(row.get("mode") == "graph" for row in rows) else "eager"
        self.rows = select(rows, mode=mode, cache="cold")
        self.shape = {"batch": batch, "tokens": tokens, "width": 1152}
        # One text length, the longest that was measured: rows of several are of several subjects.
        texts = [row["text"] for row in select(self.rows, suite="block", **self.shape)]
        self.shape |= {"text": max(texts)} if texts else {}

    def find(self, suite: str, name: str, kept: float = 1.0, **more) -> dict | None:
        wanted = {"suite": suite, "name": name, "kept": kept} | self.shape | more
        return next(iter(select(self.rows, **wanted)), None)

    def ours(self, kept: float) -> dict | None:
        """Our block with the first row kernels that were measured."""
        found = (self.find("block", name, kept) for name in OURS)
        return next((row for row in found if row is not None), None)


def ratio(row: dict | None, other: dict | None, name: str = "of_baseline") -> float | None:
    """Of two rows of one subject: by the medians of ratios to the common baseline, None without one."""
    both = row is not None and other is not None and name in row and name in other
    return row[name] / other[name] if both else None


def targets(rows: list[dict], roof: Roof | None, batch: int = 16, tokens: int = 1024) -> Iterator[Target]:
    """Every figure that the package has to show; `rows` are those of one machine and dtype."""
    found = Rows(rows, batch, tokens)
    ours, dense = found.ours, found.ours(1.0)
    for kept, must in ((0.8, 0.83), (0.7, 0.73), (0.5, 0.51), (0.3, 0.33)):
        yield Target(f"latency at keep {kept} / ours at keep 1", must, ratio(ours(kept), dense))
    for kept, must in ((0.8, 0.92), (0.7, 0.92), (0.5, 0.92), (0.3, 0.84)):
        latency, flops = ratio(ours(kept), dense), ratio(ours(kept), dense, "flops")
        realised = None if latency is None else flops / latency
        yield Target(f"E at keep {kept}: FLOP ratio / latency ratio", must, realised, least=True)
    yield from _against_peers(found)
    yield from _parts(found, roof)
    yield from _training(found)


def _against_peers(found: Rows) -> Iterator[Target]:
    compiled, dense, half = found.find("block", "dense, compiled"), found.ours(1.0), found.ours(0.5)
    best = [row for name in BEST_ATTENTION if (row := found.find("block", name)) is not None]
    fastest = min((row for row in (compiled, *best) if row), key=lambda row: row["seconds"], default=None)
    eager = found.find("block", "authors' eager", 0.5)
    for what, must, row, own in (
        ("torch.compile dense / our dense", 1.25, compiled, dense),
        ("the same with the best attention / our dense", 1.07, fastest, dense),
        ("torch.compile dense / ours at keep 0.5", 2.4, compiled, half),
        ("the authors' eager code / ours, both at keep 0.5", 1.6, eager, half),
    ):
        yield Target(what, must, ratio(row, own), least=True)


def _parts(found: Rows, roof: Roof | None) -> Iterator[Target]:
    half, dense = found.ours(0.5), found.ours(1.0)
    steps, unrouted = (
        ratio(found.find("block", name, 0.5), half)
        for name in ("route + gather + scatter", "adaLN + gate + residual")
    )
    yield Target("routing + gather + scatter / our block at keep 0.5", 0.025, steps)
    # A dense block moves rows too: this is what routing adds to as many of them.
    added = None if steps is None or unrouted is None else steps - unrouted
    yield Target("the same without the row steps that a dense block has too", 0.025, added)
    attention = [row for row in select(found.rows, suite="operator", subject="attention")
                 if row["tokens"] * row["kept"] >= 2048]  # fmt: skip
    best = max((row["flops"] / row["seconds"] / 1e12 for row in attention), default=None)
    yield Target("useful TFLOP/s of the fastest attention, 2048 tokens or more", 400, best, least=True)
    used = None if roof is None or dense is None else dense["flops"] / dense["seconds"] / roof.flops
    yield Target("our dense block's FLOP/s / the largest product's", 0.72, used, least=True)


def _training(found: Rows) -> Iterator[Target]:
    for small, large in ((0.4, 0.5), (0.5, 0.6), (0.6, 0.7), (0.8, 0.9)):
        packed = found.find("training", "two_bin_block", large, kept_small=small)
        dense = found.find("training", "mod_block, dense")
        latency, flops = ratio(packed, dense), ratio(packed, dense, "flops")
        over = None if latency is None else latency / flops
        yield Target(f"two bins {small} / {large}: latency ratio / FLOP ratio", 1.08, over)
    packed = found.find("training", "two_bin_block", 0.6, kept_small=0.5)
    compiled = found.find("training", "dense, compiled")
    memory = ratio(packed, compiled, "peak_bytes")
    yield Target("two bins 0.5 / 0.6: peak memory / torch.compile dense", 0.70, memory)
