"""The paper's own figures, from ``published.json``: what ours are printed beside, and never mixed with."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PAPER = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Published:
    """A row of one of the paper's tables.

    Attributes:
        table: where it stands.
        task: "t2i" or "inpaint".
        system: "pixart-sigma"; of inpainting "lazy", "image" or "crop".
        method: "dense", "tome", "atedm", "mod", "l", "lt"; "diffratio" where the table does not say which.
        compression: part of the tokens.
        name: as the paper calls it.
        figures: ``fid``, ``clip_score``, ``hps``; by batch size ("16", "128") ``gflop``, ``seconds`` and
            ``gigabytes``.
    """

    table: str
    task: str
    system: str
    method: str
    compression: float
    name: str
    figures: dict[str, Any]


@cache
def published_rows() -> tuple[Published, ...]:
    """Return all rows, table by table."""
    return tuple(Published(**row) for row in json.loads(PAPER.read_text())["rows"])


def published(task: str, system: str, method: str, compression: float) -> Published | None:
    """Return the row in which all of these agree, None where there is none: a ratio between two rows is
    neither of them. Of a dense model it is the fine-tuned one.

    Example:
        >>> published("t2i", "pixart-sigma", "lt", 0.2).figures["fid"]
        10.68
    """
    wanted = (task, system, method, 0.0 if method == "dense" else round(compression, 6))
    found = [row for row in published_rows() if (row.task, row.system, row.method, row.compression) == wanted]
    return found[-1] if found else None


def of_dense(row: Published, batch: int) -> dict[str, float]:
    """Return what of the fine-tuned dense model's cost a row has at a batch size: ``milliseconds`` of a
    sampling and ``peak_megabytes``, the mean over layers; empty where the paper has no such figure."""
    dense = published(row.task, row.system, "dense", 0.0)
    if str(batch) not in row.figures:
        return {}
    own, whole = row.figures[str(batch)], dense.figures[str(batch)]
    names = {"milliseconds": "seconds", "peak_megabytes": "gigabytes"}
    return {key: own[name] / whole[name] for key, name in names.items()}
