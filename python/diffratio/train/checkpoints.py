"""Checkpoints that are whole or not there: written beside their place, renamed when complete."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .arguments import ArgumentError

if TYPE_CHECKING:  # `plot` reads checkpoints where accelerate need not be
    from accelerate import Accelerator

MANIFEST = "checkpoint.json"


class Checkpoints:
    """The folders `checkpoint-N` of the run in `root`, of which the newest `limit` are kept (None: all)."""

    def __init__(self, root: Path, limit: int | None = None):
        self.root, self.limit = root, limit

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, broken ones too, ascending."""
        matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in self.root.glob("checkpoint-*"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, whether there is one or not."""
        return self.root / f"checkpoint-{step}"

    def why_broken(self, step: int) -> str | None:
        """Return why a checkpoint cannot be used, as a file that is missing or cut off; None if it can."""
        path = self.path(step)
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
            wrong = [name for name, size in files.items() if (path / name).stat().st_size != size]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return f"{wrong[0]} has another size than when it was written" if wrong else None

    def find(self, wanted: str) -> int | None:
        """Return the step to resume from; None where the run has no whole checkpoint.

        Args:
            wanted: "latest" (the newest that is whole), or a checkpoint's name or path.

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

    @contextmanager
    def writing(self, accelerator: Accelerator, step: int) -> Iterator[Path]:
        """Like `replacing`, for the checkpoint of a step; then delete those beyond the limit."""
        with replacing(accelerator, self.path(step)) as folder:
            yield folder
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                files = [path for path in folder.rglob("*") if path.is_file()]
                sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
                (folder / MANIFEST).write_text(json.dumps({"step": step, "files": sizes}, indent=2) + "\n")
        if accelerator.is_main_process and self.limit is not None:
            for old in [one for one in self.steps() if one <= step][: -self.limit]:
                _delete(self.path(old))

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints after `step`, where the run resumes, to `checkpoint-N.old`: nothing reads it."""
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
        """Delete what a killed run was writing or deleting."""
        for path in [*self.root.glob(".*.partial"), *self.root.glob(".*.deleted")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def replacing(accelerator: Accelerator, place: Path) -> Iterator[Path]:
    """Give every process a folder to write to, which takes its place when all of them are done.

    Raises:
        ArgumentError: it cannot be written; what was in its place before still is.
    """
    partial = _hidden(place, "partial")
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        accelerator.wait_for_everyone()
        yield partial
    # A full disk is another error of safetensors and of torch.save.
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
    """Hide the folder first, so that nobody takes a half of it for the whole."""
    hidden = _hidden(folder, "deleted")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _hidden(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")
