"""How far what `diffratio plan --results` says of a routed block is from what was measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from diffratio.evaluation.flops import TransformerShape
from diffratio.plan import Measured, plan
from diffratio_kernels import kept_tokens
from diffratio_kernels._backends import BACKENDS


@dataclass(frozen=True)
class BlockError:
    """One measured block. seconds, predicted: of it. ratio, predicted_ratio: to the block that keeps all
    tokens, None where that was not measured."""

    name: str
    batch: int
    tokens: int
    kept: float
    seconds: float
    predicted: float
    ratio: float | None
    predicted_ratio: float | None

    @property
    def error(self) -> float:
        """Of the seconds, as a part of the measured ones."""
        return self.predicted / self.seconds - 1

    @property
    def ratio_error(self) -> float | None:
        """Of the latency ratio, absolute."""
        return None if self.ratio is None else self.predicted_ratio - self.ratio


@dataclass(frozen=True)
class PredictionError:
    """All blocks `mod_block ...` of a results file, predicted from its operator and peak rows."""

    blocks: tuple[BlockError, ...]

    def summary(self) -> dict[str, float | None]:
        """Median and largest absolute error of the seconds and of the latency ratios below 1 kept."""
        seconds = [abs(block.error) for block in self.blocks]
        ratios = [abs(b.ratio_error) for b in self.blocks if b.kept < 1 and b.ratio_error is not None]
        return {
            "median": median(seconds),
            "worst": max(seconds),
            "ratio_median": median(ratios) if ratios else None,
            "ratio_worst": max(ratios, default=None),
        }


def prediction_error(rows: Sequence[dict], left_out: bool = False) -> PredictionError | None:
    """Predicted against measured, for the rows of suite "block" whose name starts with "mod_block".

    Args:
        rows: flat rows of a results file.
        left_out: predict each block without the operator rows of its kept ratio.

    Returns:
        None where no such block was measured, or no peaks to predict it from.
    """
    try:
        blocks = [row for row in Measured(rows).rows if row["suite"] == "block"]
    except ValueError:
        return None
    first: dict[tuple, dict] = {}  # in a graph before eager, a cold cache before a warm one
    for row in sorted(blocks, key=lambda row: (row.get("mode") != "graph", row.get("cache") != "cold")):
        if row["name"].startswith("mod_block"):
            first.setdefault((_block_of(row), row["kept"]), row)
    found = []
    for (block, kept), row in first.items():
        source = Measured(_of_backend(rows, row["name"].split()[-1], kept if left_out else None))
        dense, predicted = first.get((block, 1.0)), _predict(row, source)
        ratio = row["seconds"] / dense["seconds"] if dense else None
        predicted_ratio = predicted / _predict(dense, source) if dense else None
        sizes = row["name"], row["batch"], row["tokens"], kept
        found.append(BlockError(*sizes, row["seconds"], predicted, ratio, predicted_ratio))
    return PredictionError(tuple(found)) if found else None


def _predict(row: dict, source: Measured) -> float:
    """Seconds of a measured block."""
    shape = TransformerShape(1, row["width"], row["heads"], row["tokens"], row.get("text") or 0)
    kept = kept_tokens(round(10 * row["kept"]), row["tokens"])
    return plan(shape, row["batch"], kept, source).layers[0].seconds


def _of_backend(rows: Sequence[dict], backend: str, without: float | None) -> list[dict]:
    """Operators by the block's own backend where it has them, and not at the kept ratio `without`."""
    has = {row["subject"] for row in rows if row["suite"] == "operator" and row["name"] == backend}
    ours = {name for names in BACKENDS.values() for name in names}
    return [
        row
        for row in rows
        if row["suite"] != "operator"
        or row.get("kept") != without
        and not (row["subject"] in has and row["name"] in ours - {backend})
    ]


def _block_of(row: dict) -> tuple:
    """What tells blocks apart, but for the kept ratio."""
    return tuple(row.get(name) for name in ("batch", "tokens", "width", "heads", "text", "name"))
