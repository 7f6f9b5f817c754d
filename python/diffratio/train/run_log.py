"""What a run writes down: `run.json`, `log.jsonl`, `ratios.jsonl`."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diffratio_kernels import __version__

from .arguments import TrainArguments

RUN, LOG, RATIOS = "run.json", "log.jsonl", "ratios.jsonl"
PACKAGES = ("torch", "diffusers", "accelerate", "peft")


class JsonLines:
    """A file of one JSON object per line, each with a step. Lines after `step` (None: all) are dropped."""

    def __init__(self, path: Path, step: int | None):
        kept = (
            [] if step is None else [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        )
        replace_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, **entry) -> None:
        self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict]:
    """The lines of `log.jsonl` or `ratios.jsonl`; a last line that a kill cut off is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    return [line[:-1] for line in path.open() if line.endswith("\n")] if path.exists() else []


def replace_text(path: Path, text: str) -> None:
    """Write a file in one piece: a kill leaves the old text or the new one."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    beside.replace(path)


def describe(arguments: TrainArguments, **facts) -> dict:
    """The first content of `run.json`."""
    return {
        "arguments": asdict(arguments),
        "seed": arguments.seed,
        **facts,
        "versions": {"diffratio": __version__, "python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "started": now(),
        "finished": None,
    }


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
