"""Results on disk: a file per machine, a line per measured subject, appended as soon as it is measured.

And the roof of a machine, which the suite "peak" measures.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KEY = ("device", "threads", "suite", "subject", "dtype", "batch", "tokens", "width", "heads", "text", "keep",
       "layers", "steps")  # fmt: skip
"""What tells a subject from others: of one that was measured twice, the later line counts."""
NEEDED = {"device", "threads", "suite", "subject", "dtype", "name"}
"""What every row has."""


def file_of(folder: Path, device: str) -> Path:
    """<folder>/<device in lower case, joined by hyphens>.jsonl"""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.jsonl"


def machine_name(row: dict) -> str:
    """The device of a row, a processor with its threads."""
    threads = row["threads"]
    return row["device"] + ("" if row.get("capability") else f", {threads} thread{'s' * (threads != 1)}")


def append(path: Path, facts: dict, rows: list[dict]) -> None:
    """Add one subject: facts of the run, and its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**facts, "rows": rows}) + "\n")


def read(*paths: Path) -> list[dict]:
    """Flat rows of result files, each with the facts of its run; the newest of every subject.

    Raises ValueError that names the file and the line where one is not a result.
    """
    newest: dict[tuple, list[dict]] = {}
    for path in paths:
        # Not splitlines: a name may hold U+2028 or U+0085, which end no line of JSON.
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if not line.strip():
                continue
            rows = _rows(line, f"{path}, line {number}")
            newest[tuple(rows[0].get(name) for name in KEY)] = rows
    return [row for rows in newest.values() for row in rows]


def _rows(line: str, where: str) -> list[dict]:
    try:
        run = json.loads(line)
        facts = {name: value for name, value in run.items() if name != "rows"}
        rows = [facts | row for row in run["rows"]]
        if rows and all(row.keys() >= NEEDED for row in rows):
            return rows
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
        pass
    raise ValueError(f"{where}: not a result of `diffratio bench`")


def select(rows: Iterable[dict], **wanted) -> list[dict]:
    """Measured rows whose fields have these values."""
    return [
        row
        for row in rows
        if "refused" not in row and all(row.get(name) == value for name, value in wanted.items())
    ]


@dataclass(frozen=True)
class Roof:
    """Of one machine and dtype: FLOP/s of a product, bytes/s of a copy."""

    flops: float
    bytes: float

    @property
    def balance(self) -> float:
        """FLOPs per byte from which on FLOPs are the limit."""
        return self.flops / self.bytes


def roof_of(rows: Iterable[dict], device: str, dtype: str, threads: int) -> Roof | None:
    """The machine's roof, None where its suite "peak" was not measured."""
    wanted = {"suite": "peak", "device": device, "dtype": dtype, "threads": threads}
    peaks = {row["subject"]: row for row in select(rows, **wanted)}
    if not {"matmul", "copy"} <= peaks.keys():
        return None
    product, copy = peaks["matmul"], peaks["copy"]
    return Roof(product["flops"] / product["seconds"], copy["bytes"] / copy["seconds"])
