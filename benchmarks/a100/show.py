"""Rows beside the paper's: ratios first, since the paper does not say of how many steps its seconds are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from diffratio.evaluation.published import PAPER, Published, of_dense, published
from diffratio.plan import Device

from .overhead import Figure
from .predict import flops, predicted_seconds
from .steps import Step, Work

HEAD = (
    "system", "ms a forward", "of dense", "predicted", "FLOPs", "paper, s", "paper, of dense", "ms a block",
    "GB a block", "of dense", "paper, GB", "paper, of dense", "GB in all",
)  # fmt: skip
"""Of a table; predicted and FLOPs are parts of the first system's. Memory is what is held beside weights and
inputs: of a block as the authors count it, the mean over all, and of the whole forward."""
FIGURE_HEAD = ("tokens", "what", "kept", "ms", "of the dense block", "FLOPs", "saved / ideal", "MB")


def table(step: Step, rows: Sequence[dict], device: Device) -> Iterator[list[str]]:
    """The cells of a step; what was not measured has its prediction and the paper's figure alone."""
    found = {row["system"]: row for row in rows if row["step"] == step.name}
    base = found.get(step.works[0].name, {})
    for work in step.works:
        row = found.get(work.name, {})
        own = _published(step, work)
        figures = {} if own is None else own.figures.get(str(step.images), {})
        parts = {} if own is None else of_dense(own, step.images)
        yield [
            work.name,
            "refused" if "refused" in row else _number(row.get("seconds"), 1e3),
            _number(row.get("of_dense") if work.kind == step.works[0].kind else _part(row, base, "seconds")),
            *(_number(ratio) for ratio in predicted(step, work, device)),
            _number(figures.get("seconds"), digits=2), _number(parts.get("milliseconds")),
            _number(row.get("layer_seconds"), 1e3), _number(row.get("layer_peak_bytes"), 1e-9),
            _number(_part(row, base, "layer_peak_bytes")),
            _number(figures.get("gigabytes")), _number(parts.get("peak_megabytes")),
            _number(row.get("peak_bytes"), 1e-9),
        ]  # fmt: skip


def predicted(step: Step, work: Work, device: Device) -> tuple[float, float]:
    """Predicted seconds and true FLOPs of a system, as parts of those of the first one."""
    first = step.works[0]
    seconds = predicted_seconds(step, work, device) / predicted_seconds(step, first, device)
    return seconds, flops(step, work) / flops(step, first)


def differences(step: Step, rows: Sequence[dict]) -> Iterator[str]:
    """What the paper's prose says that one system of Table 2 saves beside another, and what it saved here."""
    found = {row["system"]: row for row in rows if row["step"] == step.name and "refused" not in row}
    keys = {"latency, part saved": "seconds", "memory, part saved": "layer_peak_bytes"}
    own = found.get("lazy, DiffRatio-LT")
    against = {"image": "image, dense", "crop": "crop, dense", "tome": "lazy, tome:mlp:0.3"}
    works = {work.name: work for work in step.works}
    for one in saved():
        name = against.get(one["against"])
        key, other = keys.get(one["metric"]), found.get(name)
        if one["metric"].startswith("gflop") and name:
            part = flops(step, works["lazy, DiffRatio-LT"]) / flops(step, works[name])
            here = f"{1 - part:.4f} by count, without the encoder"
        else:
            here = f"{1 - own[key] / other[key]:.4f}" if own and other else "not measured"
        yield (
            f"{one['metric']} of {one['of']} against {one['against']}: paper {one['value']:.4f}, here {here} "
            f"({one['where']})"
        )


def saved() -> list[dict]:
    """The differences of costs that the paper states."""
    stated = json.loads(PAPER.read_text())["differences"]
    return [one for one in stated if one["task"] == "inpaint" and "part saved" in one["metric"]]


def figure(step: Figure, rows: Sequence[dict]) -> Iterator[list[str]]:
    """The cells of figure 3. "saved / ideal": the part of the time that was saved over the part of the tokens
    that was left out; a line through 0 has the same at every ratio."""
    for row in (row for row in rows if row["step"] == step.name):
        if "refused" in row:
            yield [str(row["tokens"]), row["name"], f"{row['kept']:g}", "refused", "", "", "", ""]
            continue
        ratio, dense = 1 - row["kept"], row.get("of_baseline")
        saves = "block" in row["name"] and dense is not None and ratio > 0
        base = next((r for r in rows if r["step"] == step.name and r["tokens"] == row["tokens"]), row)
        work = row["flops"] / base["flops"] if row["flops"] and base["flops"] else None
        yield [
            str(row["tokens"]), row["name"], f"{row['kept']:g}", _number(row["seconds"], 1e3),
            _number(dense), _number(work), _number((1 - dense) / ratio if saves else None, digits=2),
            _number(row.get("peak_bytes"), 1e-6, 1),
        ]  # fmt: skip


def _published(step: Step, work: Work) -> Published | None:
    """The paper's row; Table 2 has no cells in the text that was read."""
    if step.table != "table1" or work.system.method is None:
        return None
    return published("t2i", "pixart-sigma", work.system.method, work.system.compression)


def _part(row: dict, base: dict, key: str) -> float | None:
    return row[key] / base[key] if key in row and base.get(key) else None


def _number(value: float | None, scale: float = 1.0, digits: int = 3) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"
