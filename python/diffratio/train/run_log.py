"""The files of a run that grow or change while it lasts: `run.json`, `log.jsonl`, `ratios.jsonl`."""

import json
from pathlib import Path

RUN, LOG, RATIOS = "run.json", "log.jsonl", "ratios.jsonl"


class JsonLines:
    """A file of one JSON object per line, each with a step. Lines after `step` (None: all) are dropped."""

    def __init__(self, path: Path, step: int | None):
        lines = [] if step is None else _whole_lines(path)
        replace_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
        self._file = path.open("a", buffering=1)

    def write(self, **entry) -> None:
        """Append one line."""
        self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict]:
    """Return the lines of `log.jsonl` or `ratios.jsonl` without a last one that a kill cut off."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    return [line[:-1] for line in path.open() if line.endswith("\n")] if path.exists() else []


def replace_text(path: Path, text: str) -> None:
    """Write a file in one piece: a kill leaves the old text or the new one."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    beside.replace(path)
