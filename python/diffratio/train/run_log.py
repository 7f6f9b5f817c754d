"""The files of a run that grow or change while it lasts: `run.json`, `log.jsonl`, `ratios.jsonl`."""

import json
from pathlib import Path

from ..files import replace_text

RUN, LOG, RATIOS = "run.json", "log.jsonl", "ratios.jsonl"


def append_line(path: Path, entry: dict) -> None:
    """Write one line of `log.jsonl` or `ratios.jsonl`."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def cut_after(path: Path, step: int | None) -> None:
    """Drop the lines of later steps, None: all of them."""
    lines = [] if step is None else [line for line in read_lines(path) if line["step"] <= step]
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict]:
    """Return the lines of `log.jsonl` or `ratios.jsonl` without a last one that a kill cut off."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.open() if line.endswith("\n")]
