"""The run's folder: may it be used, where does the run resume, and what is logged on the way."""

import json
import platform
import time
import warnings
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from diffratio_kernels import __version__

from ..files import replace_text
from ..names import located
from .arguments import ArgumentError, TrainArguments
from .checkpoints import Checkpoints
from .run_log import LOG, RATIOS, RUN, append_line, cut_after

# What may differ between a run and its continuation.
FREE = {
    "checkpointing_steps",
    "checkpoints_total_limit",
    "dataloader_num_workers",
    "logging_dir",
    "max_train_steps",
    "output_dir",
    "report_to",
    "resume_from_checkpoint",
}


class Output:
    """The files of a run. The main process alone writes them; every process makes the same checks.

    Raises:
        ArgumentError: the folder cannot be written, or holds something else than the run to resume.
    """

    def __init__(self, arguments: TrainArguments, accelerator: Accelerator):
        self.arguments, self.accelerator = arguments, accelerator
        self.root = Path(arguments.output_dir)
        self.checkpoints = Checkpoints(self.root, arguments.checkpoints_total_limit)
        self.resumes_from = self._find_checkpoint()
        """The step of the checkpoint that the run goes on from; None is the beginning."""
        self._check_folder()
        accelerator.wait_for_everyone()

    def _find_checkpoint(self) -> int | None:
        """Before a folder is made: a named checkpoint that is not there is an error."""
        wanted = self.arguments.resume_from_checkpoint
        step = None if wanted is None else self.checkpoints.find(wanted)
        if wanted is not None and step is None and self.accelerator.is_main_process:
            why = "holds no checkpoint" if self.root.is_dir() else "is not there yet"
            warnings.warn(f"{self.root} {why}: the run starts from the beginning", stacklevel=3)
        self.accelerator.wait_for_everyone()
        return step

    def _check_folder(self) -> None:
        root, name = self.root, f"output_dir={str(self.root)!r}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".probe-{self.accelerator.process_index}"
            probe.write_bytes(bytes(4096))
            probe.unlink()
        except OSError as error:
            raise ArgumentError(f"{name} cannot be written: {error.strerror}") from None
        if not (root / RUN).exists():
            for path in (root / "final", *map(self.checkpoints.path, self.checkpoints.steps())):
                if path.exists():
                    raise ArgumentError(f"{name} is of no run and holds {path.name}: give another folder")
        elif self.resumes_from is not None:
            self._check_same_run()
        elif self.arguments.resume_from_checkpoint is None:
            advice = "give another folder, or go on with --resume_from_checkpoint latest"
            raise ArgumentError(f"{name} holds a run: {advice}")

    def _check_same_run(self) -> None:
        run, arguments = json.loads((self.root / RUN).read_text()), self.arguments
        # A run from before an argument existed has its default.
        before = asdict(TrainArguments()) | run["arguments"]
        for name, value in asdict(arguments).items():
            if name not in FREE and not _same(before[name], value):
                raise ArgumentError(f"{name}={value!r} differs from the resumed run ({before[name]!r})")
        processes = self.accelerator.num_processes
        if run["processes"] != processes:
            seen = processes * arguments.train_batch_size * arguments.gradient_accumulation_steps
            warnings.warn(
                f"{self.root} began in {run['processes']} processes and goes on in {processes}: a step sees "
                f"{seen} samples now, and the run is not the uninterrupted one",
                stacklevel=2,
            )
        if arguments.max_train_steps < self.resumes_from:
            raise ArgumentError(
                f"max_train_steps={arguments.max_train_steps} lies before the checkpoint that is resumed, "
                f"step {self.resumes_from}"
            )

    def open(self, facts: dict) -> None:
        """Start or continue the files, with `facts` in `run.json`; lines after the checkpoint are dropped."""
        start = time.perf_counter()
        if not self.accelerator.is_main_process:
            return
        self.checkpoints.clear_leftovers()
        arguments = asdict(self.arguments)
        if self.resumes_from is None:
            packages = {name: version(name) for name in ("torch", "diffusers", "accelerate", "peft")}
            versions = {"diffratio": __version__, "python": platform.python_version()} | packages
            self.run = {"arguments": arguments, "seed": self.arguments.seed, **facts, "versions": versions}
            self.run |= {"started": _now(), "finished": None}
        else:
            self.checkpoints.set_aside_after(self.resumes_from)
            self.run = json.loads((self.root / RUN).read_text())
            self.run |= {"arguments": arguments, "finished": None}
        self._start = start - self.run.get("seconds", 0.0)
        self._note()
        for name in (LOG, RATIOS):
            cut_after(self.root / name, self.resumes_from)
        config = {name: value for name, value in arguments.items() if value is not None}
        purge = None if self.resumes_from is None else self.resumes_from + 1
        self.accelerator.init_trackers("diffratio", config, {"tensorboard": {"purge_step": purge}})

    def log(self, entry: dict) -> None:
        """Write one line of `log.jsonl`, and its numbers as curves."""
        if self.accelerator.is_main_process:
            append_line(self.root / LOG, entry)
        curves = {name: value for name, value in entry.items() if isinstance(value, float)}
        self.accelerator.log(curves, step=entry["step"])

    def log_ratios(self, step: int, ratios: list[list[float]]) -> None:
        """Write one line of `ratios.jsonl`, and a curve per layer; `ratios` are [L][R]."""
        if self.accelerator.is_main_process:
            append_line(self.root / RATIOS, {"step": step, "ratios": ratios})
        curves = {f"ratio/layer {i:02}": sum(row) / len(row) for i, row in enumerate(ratios)}
        self.accelerator.log(curves, step=step)

    def picture(self, step: int, ratios: list[list[float]]) -> None:
        """Show the kept ratios [L][R] as an image, the noisiest region on the right."""
        if self.arguments.report_to == "none" or not self.accelerator.is_main_process:
            return
        grey = np.repeat(np.repeat(np.array(ratios, dtype=np.float32), 16, 0), 16, 1)
        tracker = self.accelerator.get_tracker("tensorboard")
        tracker.log_images({"ratios": grey[None, :, :, None]}, step, dataformats="NHWC")

    def keep_seconds(self) -> None:
        """Note the seconds so far, with each checkpoint: they count when the run is killed after it."""
        if self.accelerator.is_main_process:
            self._note()

    def close(self, **facts) -> dict:
        """Finish the files, with `facts` in `run.json`; returns its content on the main process, else {}."""
        self.accelerator.end_training()
        if not self.accelerator.is_main_process:
            return {}
        self._note(finished=_now(), **facts)
        return self.run

    def _note(self, **facts) -> None:
        self.run |= {"seconds": time.perf_counter() - self._start, **facts}
        replace_text(self.root / RUN, json.dumps(self.run, indent=2) + "\n")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _same(before: object, value: object) -> bool:
    """Return whether an argument is what it was; a folder may be written in two ways."""
    if isinstance(before, str) and isinstance(value, str):
        return located(before) == located(value)
    return before == value
