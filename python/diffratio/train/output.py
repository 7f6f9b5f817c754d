"""The run directory: may it be used, where does the run go on, and what is written down on the way."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict

from accelerate import Accelerator

from ..names import located
from .arguments import ArgumentError, TrainArguments
from .checkpoints import Checkpoints
from .run_log import LOG, RATIOS, RUN, JsonLines, describe, now, replace_text

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
    """Files are written by the main process alone; every process makes the same checks."""

    def __init__(self, arguments: TrainArguments, accelerator: Accelerator, checkpoints: Checkpoints):
        self.arguments, self.accelerator, self.checkpoints = arguments, accelerator, checkpoints
        self.root = checkpoints.root
        self.resumes_from = self._find_checkpoint()
        self._check_writable()
        if not (self.root / RUN).exists():
            self._check_nothing_in_the_way()
        if self.resumes_from is not None:
            self._check_same_run()
        elif arguments.resume_from_checkpoint is None and (self.root / RUN).exists():
            raise ArgumentError(
                f"output_dir={str(self.root)!r} holds a run: give another folder, "
                "or go on with --resume_from_checkpoint latest"
            )
        accelerator.wait_for_everyone()

    def _find_checkpoint(self) -> int | None:
        """The step to go on from; that there is none is told, before a folder is made."""
        wanted = self.arguments.resume_from_checkpoint
        step = None if wanted is None else self.checkpoints.find(wanted)
        if wanted is not None and step is None and self.accelerator.is_main_process:
            why = "holds no checkpoint" if self.root.is_dir() else "is not there yet"
            warnings.warn(f"{self.root} {why}: the run starts from the beginning", stacklevel=3)
        self.accelerator.wait_for_everyone()
        return step

    def _check_writable(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{self.accelerator.process_index}"
            probe.write_bytes(bytes(4096))
            probe.unlink()
        except OSError as error:
            raise ArgumentError(
                f"output_dir={str(self.root)!r} cannot be written: {error.strerror}"
            ) from None

    def _check_nothing_in_the_way(self) -> None:
        for path in (self.root / "final", *map(self.checkpoints.path, self.checkpoints.steps())):
            if path.exists():
                raise ArgumentError(
                    f"output_dir={str(self.root)!r} is of no run and holds {path.name}: give another folder"
                )

    def _check_same_run(self) -> None:
        run = json.loads((self.root / RUN).read_text())
        # A run from before an argument existed has its default.
        before, processes = asdict(TrainArguments()) | run["arguments"], self.accelerator.num_processes
        for name, value in asdict(self.arguments).items():
            if name not in FREE and not _same(before[name], value):
                raise ArgumentError(
                    f"{name}={value!r} differs from the run that is resumed ({before[name]!r})"
                )
        if run["processes"] != processes:
            seen = processes * self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps
            warnings.warn(
                f"{self.root} began in {run['processes']} processes and goes on in {processes}: a step sees "
                f"{seen} samples now, and the run is not the uninterrupted one",
                stacklevel=2,
            )
        last = self.arguments.max_train_steps
        if last < self.resumes_from:
            raise ArgumentError(
                f"max_train_steps={last} lies before the checkpoint that is resumed, step {self.resumes_from}"
            )

    def open(self, facts: dict) -> None:
        """Start or go on with the files; lines after the checkpoint are dropped."""
        start = time.perf_counter()
        if not self.accelerator.is_main_process:
            return
        self.checkpoints.clear_leftovers()
        if self.resumes_from is None:
            self.run = describe(self.arguments, **facts)
        else:
            self.checkpoints.set_aside_after(self.resumes_from)
            self.run = json.loads((self.root / RUN).read_text())
            self.run |= {"arguments": asdict(self.arguments), "finished": None}
        self._start = start - self.run.get("seconds", 0.0)
        self._write_run()
        self._log = JsonLines(self.root / LOG, self.resumes_from)
        self._ratios = JsonLines(self.root / RATIOS, self.resumes_from)
        self._init_trackers()

    def _init_trackers(self) -> None:
        plain = {k: v for k, v in asdict(self.arguments).items() if v is not None}
        purge = None if self.resumes_from is None else self.resumes_from + 1
        self.accelerator.init_trackers(
            "diffratio", config=plain, init_kwargs={"tensorboard": {"purge_step": purge}}
        )

    def log(self, entry: dict) -> None:
        """One line of `log.jsonl`, and its numbers as curves."""
        if self.accelerator.is_main_process:
            self._log.write(**entry)
        curves = {name: value for name, value in entry.items() if isinstance(value, float)}
        self.accelerator.log(curves, step=entry["step"])

    def log_ratios(self, step: int, ratios: list[list[float]]) -> None:
        """One line of `ratios.jsonl`, and a curve per layer."""
        if self.accelerator.is_main_process:
            self._ratios.write(step=step, ratios=ratios)
        curves = {f"ratio/layer {i:02}": sum(row) / len(row) for i, row in enumerate(ratios)}
        self.accelerator.log(curves, step=step)

    def picture(self, step: int, ratios: list[list[float]]) -> None:
        """The kept ratios as an image, layers from top to bottom and the noisiest region on the right."""
        if self.arguments.report_to == "none" or not self.accelerator.is_main_process:
            return
        import numpy as np

        grey = np.repeat(np.repeat(np.array(ratios, dtype=np.float32), 16, 0), 16, 1)
        tracker = self.accelerator.get_tracker("tensorboard")
        tracker.log_images({"ratios": grey[None, :, :, None]}, step, dataformats="NHWC")

    def keep_seconds(self) -> None:
        """With each checkpoint: of a run that is killed after it, the seconds up to it count."""
        if self.accelerator.is_main_process:
            self.run["seconds"] = time.perf_counter() - self._start
            self._write_run()

    def close(self, **facts) -> dict:
        """Finish the files; returns the content of `run.json` (on the main process, elsewhere nothing)."""
        self.accelerator.end_training()
        if not self.accelerator.is_main_process:
            return {}
        self._log.close()
        self._ratios.close()
        self.run |= {"finished": now(), "seconds": time.perf_counter() - self._start, **facts}
        self._write_run()
        return self.run

    def _write_run(self) -> None:
        replace_text(self.root / RUN, json.dumps(self.run, indent=2) + "\n")


def _same(before: object, value: object) -> bool:
    """Whether an argument is what it was; folders may be written in two ways."""
    if isinstance(before, str) and isinstance(value, str):
        return located(before) == located(value)
    return before == value
