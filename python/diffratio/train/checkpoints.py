"""Checkpoints that are whole or not there: written beside their place, renamed when complete."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .arguments import ArgumentError

if TYPE_CHECKING:  # `plot` reads checkpoints where accelerate need not be
    from accelerate import Accelerator

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
        """The step to resume from: of `latest` the newest that is whole, None where there is none.

        Raises:
            ArgumentError: a named checkpoint is not one of this run, or is broken.
        """
        if wanted != "latest":
            return self._named(wanted)
        for step in reversed(self.steps()):
            reason = self.why_broken(step)
            if reason is None:
                return step
            warnings.warn(f"{self.path(step)} is broken and skipped: {reason}", stacklevel=2)
        return None

    def _named(self, wanted: str) -> int:
        """A checkpoint by its name or its path."""
        name, steps = Path(wanted).name, self.steps()
        step = next((one for one in steps if self.path(one).name == name), None)
        elsewhere = wanted.rstrip("/") != name and Path(wanted).resolve() != (self.root / name).resolve()
        if step is None or elsewhere:
            there = ", ".join(self.path(one).name for one in steps) or "none"
            raise ArgumentError(
                f"resume_from_checkpoint={wanted!r} is no checkpoint of {self.root}, which has {there}"
            )
        reason = self.why_broken(step)
        if reason is not None:
            raise ArgumentError(f"resume_from_checkpoint={wanted!r} is broken: {reason}")
        return step

    def save(self, accelerator: Accelerator, step: int, write: Callable[[Path], None]) -> None:
        """Call `write(folder)` on every process, then give the folder its name."""

        def write_and_list(folder: Path) -> None:
            write(folder)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                files = {
                    str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()
                }
                (folder / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=2) + "\n")

        replace_folder(accelerator, self.path(step), write_and_list)
        if accelerator.is_main_process and self.limit is not None:
            for old in [one for one in self.steps() if one <= step][: -self.limit]:
                _delete(self.path(old))

    def set_aside_after(self, step: int) -> None:
        """What a run that goes back to `step` had later stays as `checkpoint-N.old`; nothing resumes that."""
        for later in [one for one in self.steps() if one > step]:
            path = self.path(later)
            old = path.with_name(f"{path.name}.old")
            if old.exists():
                _delete(old)
            path.rename(old)
            warnings.warn(
                f"{self.root} goes back to step {step}: {path.name} is kept as {old.name}", stacklevel=3
            )

    def clear_leftovers(self) -> None:
        """What a killed run left behind: halves of folders that were being written or deleted."""
        for path in [*self.root.glob(".*.partial"), *self.root.glob(".*.deleted")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_folder(accelerator: Accelerator, place: Path, write: Callable[[Path], None]) -> None:
    """Call `write(folder)` on every process; only when all are done the folder takes its place.

    What cannot be written is an ArgumentError, and what stood there before still does.
    """
    partial = _hidden(place, "partial")
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        accelerator.wait_for_everyone()
        write(partial)
    # safetensors and torch.save have error classes of their own for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ArgumentError(f"output_dir: {place} could not be written: {error}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if place.exists():
            _delete(place)
        partial.rename(place)
    accelerator.wait_for_everyone()


def _delete(folder: Path) -> None:
    """First out of sight, so that nobody takes a half of it for the whole."""
    hidden = _hidden(folder, "deleted")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _hidden(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")
