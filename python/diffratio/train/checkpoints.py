"""Checkpoints that are whole or not there: written beside their place, renamed when complete."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from .arguments import ArgumentError

MANIFEST = "checkpoint.json"


class Checkpoints:
    """The folders `checkpoint-N` of a run."""

    def __init__(self, root: Path, limit: int | None = None):
        self.root, self.limit = root, limit

    def steps(self) -> list[int]:
        """Of all checkpoints, broken ones too, ascending."""
        matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in self.root.glob("checkpoint-*"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.root / f"checkpoint-{step}"

    def why_broken(self, step: int) -> str | None:
        """What is wrong with a checkpoint: a file missing, or shorter than it was; None where nothing is."""
        path = self.path(step)
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
            wrong = [name for name, size in files.items() if (path / name).stat().st_size != size]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return f"{wrong[0]} has another size than when it was written" if wrong else None

    def find(self, wanted: str) -> int | None:
        """The step to resume from: `latest` takes the newest that is whole, None where there is none."""
        if wanted != "latest":
            match = re.fullmatch(r"(?:.*/)?checkpoint-(\d+)/?", wanted)
            if match is None or int(match[1]) not in self.steps():
                raise ArgumentError(f"resume_from_checkpoint={wanted!r} is no checkpoint of {self.root}")
            reason = self.why_broken(int(match[1]))
            if reason is not None:
                raise ArgumentError(f"resume_from_checkpoint={wanted!r} is broken: {reason}")
            return int(match[1])
        for step in reversed(self.steps()):
            reason = self.why_broken(step)
            if reason is None:
                return step
            warnings.warn(f"{self.path(step)} is broken and skipped: {reason}", stacklevel=2)
        return None

    def save(self, accelerator: Accelerator, step: int, write: Callable[[Path], None]) -> None:
        """Call `write(folder)` on every process, then give the folder its name."""
        partial = self.root / f".checkpoint-{step}.partial"
        if accelerator.is_main_process:
            self.clear_leftovers()
            partial.mkdir()
        accelerator.wait_for_everyone()
        write(partial)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = {
                str(path.relative_to(partial)): path.stat().st_size
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            }
            (partial / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=2) + "\n")
            if self.path(step).exists():
                self._delete(step)
            partial.rename(self.path(step))
            whole = [one for one in self.steps() if one <= step]
            for old in whole[: -self.limit] if self.limit else []:
                self._delete(old)
        accelerator.wait_for_everyone()

    def clear_leftovers(self) -> None:
        """What a killed run left behind: halves of checkpoints that were being written or deleted."""
        for path in self.root.glob(".checkpoint-*"):
            shutil.rmtree(path)

    def _delete(self, step: int) -> None:
        hidden = self.root / f".checkpoint-{step}.deleted"
        self.path(step).rename(hidden)
        shutil.rmtree(hidden)
