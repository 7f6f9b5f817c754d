"""The rows of a results file: which of them belong together, and at which sizes they were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..flops import kept_tokens
from .steps import Sizes

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
MLP_RATIO = 4
"""Of every measured block."""


def main_setting(rows: Sequence[dict]) -> tuple[str, str, int | None]:
    """Device, dtype and threads that most operator rows have; of all rows where there are none."""
    counted = [row for row in rows if row["level"] == "operator"] or [
        row for row in rows if row["level"] == "peak"
    ]
    known = Counter(setting(row) for row in counted if _dtype(row) in ITEMSIZE)
    if not known:
        raise ValueError(f"rows: no operator and no peak was measured in {', '.join(ITEMSIZE)}")
    return known.most_common(1)[0][0]


def preferred(rows: Sequence[dict]) -> list[dict]:
    """One row for each subject, shape and candidate: in a graph before eager, a cold cache before a warm."""
    best: dict[tuple, dict] = {}
    for row in sorted(rows, key=lambda row: (row.get("mode") != "graph", row.get("cache") != "cold")):
        best.setdefault(identity(row), row)
    return list(best.values())


def identity(row: dict) -> tuple:
    """What tells rows apart that differ in more than the way they were measured."""
    fields = ("level", "subject", "batch", "tokens", "width", "heads", "text", "layers", "name", "kept")
    return tuple(row.get(field) for field in (*fields, "kept_small"))


def row_sizes(row: dict, itemsize: int) -> Sizes:
    """The sizes of an operator's or a block's row."""
    width = row["width"]
    kept = kept_tokens(round(10 * row.get("kept", 1.0)), row["tokens"])
    text = row.get("text") or 0
    return Sizes(
        row["batch"], row["tokens"], kept, width, row["heads"], text, MLP_RATIO * width, width, itemsize
    )


def _dtype(row: dict) -> str:
    return str(row.get("dtype")).removeprefix("torch.")


def setting(row: dict) -> tuple:
    """Device, dtype and threads of a row."""
    return row.get("device"), _dtype(row), row.get("threads")
