"""How far predicted seconds of a routed block are from measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .measured import Measured
from .rows import identity, row_sizes
from .steps import routed_steps


@dataclass(frozen=True)
class BlockError:
    """One measured block. seconds, predicted: of it. ratio, predicted_ratio: to the block that keeps all
    tokens, None where that was not measured. spread: of the measured seconds, as a part of them."""

    name: str
    batch: int
    tokens: int
    kept: float
    seconds: float
    predicted: float
    ratio: float | None
    predicted_ratio: float | None
    spread: float

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
    """All blocks `mod_block ...` of a results file, predicted from its operator and peak rows.

    left_out: predicted without the operator rows of the block's own kept ratio.
    """

    left_out: bool
    blocks: tuple[BlockError, ...]

    def summary(self) -> dict[str, float | None]:
        """Median and largest absolute error of the seconds and of the latency ratios below 1 kept; the median
        spread of the measured seconds, which no prediction can undercut."""
        seconds = [abs(block.error) for block in self.blocks]
        ratios = [abs(b.ratio_error) for b in self.blocks if b.kept < 1 and b.ratio_error is not None]
        return {
            "median": median(seconds),
            "worst": max(seconds),
            "ratio_median": median(ratios) if ratios else None,
            "ratio_worst": max(ratios, default=None),
            "spread": median(block.spread for block in self.blocks),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        blocks = [asdict(b) | {"error": b.error, "ratio_error": b.ratio_error} for b in self.blocks]
        return {"left_out": self.left_out, **self.summary(), "blocks": blocks}


def prediction_error(rows: Sequence[dict], left_out: bool = False) -> PredictionError | None:
    """Predicted against measured, for the rows of level "block" whose name starts with "mod_block".

    Args:
        rows: flat rows of a results file.
        left_out: predict each block without the operator rows of its kept ratio.

    Returns:
        None where no such block was measured.
    """
    blocks = [row for row in Measured(rows).rows if _routed(row)]
    sources: dict = {}

    def predict(row: dict, without: float | None) -> float:
        name = row["name"].split()[-1]
        if (name, without) not in sources:
            seen = [
                r for r in rows if r["level"] != "operator" or without is None or r.get("kept") != without
            ]
            sources[name, without] = Measured(seen, name)
        source = sources[name, without]
        sizes = row_sizes(row, source.itemsize)
        steps = routed_steps(sizes, is_one_kernel=source.is_one_kernel)
        return sum(source.cost(step).seconds for step in steps)

    whole = {_block_of(row): row for row in blocks if row["kept"] == 1}
    found = []
    for row in blocks:
        without = row["kept"] if left_out else None
        dense, predicted = whole.get(_block_of(row)), predict(row, without)
        found.append(
            BlockError(
                row["name"],
                row["batch"],
                row["tokens"],
                row["kept"],
                row["seconds"],
                predicted,
                row["seconds"] / dense["seconds"] if dense else None,
                predicted / predict(dense, without) if dense else None,
                row.get("spread", 0.0),
            )
        )
    return PredictionError(left_out, tuple(found)) if found else None


def _routed(row: dict) -> bool:
    return row["level"] == "block" and row["name"].startswith("mod_block")


def _block_of(row: dict) -> tuple:
    """What tells blocks apart, but for the kept ratio."""
    return identity(row | {"kept": None})
