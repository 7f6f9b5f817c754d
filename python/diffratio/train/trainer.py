"""The training loop, on accelerate."""

from __future__ import annotations

import errno
import math
import os
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from ..patch import transformer_of
from ..progress import progress_bar
from ..ratios import table_of
from .arguments import ArgumentError, TrainArguments
from .base import load_base, prepare_model
from .checkpoints import Checkpoints, replace_folder
from .controller import RatioController
from .data import load_splits, places, training_loader, validation_loader
from .encoded import EncodedDataset
from .optimizer import make_optimizer, make_schedule, trained
from .output import Output
from .sharding import prepare_sharding, reduce_ratio_gradient
from .state import keep_trained_only, load_state, save_adapter, save_state
from .validation import validate

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RESUME = "Checkpoints are kept: make room and go on with --resume_from_checkpoint latest"


class Trainer:
    """One run: `Trainer(arguments).fit()`."""

    def __init__(self, arguments: TrainArguments, progress: bool = True):
        self.arguments, self.progress = arguments, progress
        self.root = Path(arguments.output_dir)
        _check_launch(arguments)
        self.accelerator = Accelerator(
            # Without an accelerator, launched processes would not know of each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=arguments.mixed_precision,
            # The number alone would give way to one in the environment.
            gradient_accumulation_plugin=GradientAccumulationPlugin(arguments.gradient_accumulation_steps),
            log_with=None if arguments.report_to == "none" else arguments.report_to,
            project_config=ProjectConfiguration(self.root, str(self.root / arguments.logging_dir)),
        )
        prepare_sharding(self.accelerator, arguments)
        set_seed(arguments.seed)
        self.checkpoints = Checkpoints(self.root, arguments.checkpoints_total_limit)
        self.output = Output(arguments, self.accelerator, self.checkpoints)
        self.base = load_base(arguments)
        self.objective = self.base.objective
        self.dataset, held_out = load_splits(arguments, self.base, self.accelerator, progress)
        model = prepare_model(self.base.model, arguments)
        optimizer = make_optimizer(model, arguments)
        self.schedule = make_schedule(optimizer, arguments)
        self.model, self.optimizer, self.validation = self.accelerator.prepare(
            model, optimizer, validation_loader(arguments, self.base, held_out)
        )
        self.controller = self._controller() if arguments.learns_ratios else None
        self.ema = None
        if arguments.use_ema:
            self.ema = EMAModel(self.averaged_parameters(), decay=arguments.ema_max_decay, foreach=True)
        keep_trained_only(self.accelerator)
        self.step, self.last_validation = 0, {}

    def _controller(self) -> RatioController:
        target, steps = self.arguments.target_compression, self.arguments.max_train_steps
        weight = self.arguments.fixed_ratio_weight()
        return RatioController(table_of(self.model), target, steps, weight=weight)

    def fit(self) -> dict:
        """Train to the last step, write `final/`, and return the content of `run.json`."""
        # Processes must not drop the same class labels.
        set_seed(self.arguments.seed, device_specific=True)
        resumed = self.output.resumes_from
        if resumed is not None:
            self.step = load_state(self, self.checkpoints.path(resumed))
        self.output.open(self._facts())
        if self.step < self.arguments.max_train_steps:
            if self.step == 0:
                self._validate()
            self._train()
        else:  # killed after its last checkpoint, or finished before
            self.last_validation = self._held_out_loss()
        replace_folder(self.accelerator, self.root / "final", lambda folder: save_adapter(self, folder))
        ratios = {} if self.controller is None else {"ratios": self.controller.table.host()}
        return self.output.close(step=self.step, **self.last_validation, **ratios)

    def _facts(self) -> dict:
        everything = transformer_of(self.model).parameters()
        return {
            **places(self.arguments, self.base.model.config),
            "loss": self.objective.name,
            "latents": isinstance(self.dataset, EncodedDataset),
            "processes": self.accelerator.num_processes,
            "parameters": {
                "total": sum(p.numel() for p in everything),
                "trained": sum(p.numel() for p in trained(self.model)),
            },
        }

    def _train(self) -> None:
        processes = self.accelerator.num_processes
        loader = training_loader(self.arguments, self.base, self.dataset, processes, self.step)
        loader = self.accelerator.prepare(loader)
        bar = progress_bar(
            total=self.arguments.max_train_steps,
            show=self.progress and self.accelerator.is_local_main_process,
            initial=self.step,
            desc=f"training {self.arguments.method}",
            unit="step",
        )
        self.model.train()
        with bar:
            self._run_steps(loader, bar)

    def _run_steps(self, loader, bar: tqdm) -> None:
        losses, start = [], time.perf_counter()
        for batch in loader:
            losses.append(self._forward_backward(batch))
            if not self.accelerator.sync_gradients:
                continue
            entry = self._finish_step(losses)
            self.output.log(entry | {"seconds": time.perf_counter() - start})
            bar.set_postfix(_postfix(entry), refresh=False)
            bar.update()
            losses.clear()
            self._validate_and_save()
            start = time.perf_counter()

    def _forward_backward(self, batch: dict[str, Tensor]) -> Tensor:
        """One micro-batch; the optimiser steps when it is the last of its step. Returns both losses, [2]."""
        with self.accelerator.accumulate(self.model):
            with self.accelerator.autocast():
                loss = self.objective(self.model, batch).mean()
            ratio_loss = (
                torch.zeros_like(loss) if self.controller is None else self.controller.loss(self.model)
            )
            self.accelerator.backward(loss + ratio_loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.averaged_parameters(), self.arguments.max_grad_norm)
                if self.controller is not None:
                    reduce_ratio_gradient(self.accelerator, self.controller.table.ratios)
                    self.controller.before_step()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return torch.stack([loss.detach(), ratio_loss.detach()])

    def _finish_step(self, losses: list[Tensor]) -> dict:
        """What follows an optimiser step; returns its line of the log."""
        self.step += 1
        loss, ratio_loss = self.accelerator.reduce(torch.stack(losses).mean(0), "mean").tolist()
        self._check_finite("loss", loss + ratio_loss)
        entry = {"step": self.step, "loss": loss, "lr": self.schedule.get_last_lr()[0]}
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.averaged_parameters())
        if self.controller is not None:
            self.controller.after_step()
            ratios = self.controller.table.host()
            self.output.log_ratios(self.step, ratios)
            entry |= {
                "ratio_loss": ratio_loss,
                "ratio_weight": self.controller.weight,
                "mean_ratio": sum(map(sum, ratios)) / sum(map(len, ratios)),
                "target": self.controller.target,
            }
        return entry

    def _validate_and_save(self) -> None:
        last = self.step == self.arguments.max_train_steps
        if last or self.step % self.arguments.validation_steps == 0:
            self._validate()
        if last or self.step % self.arguments.checkpointing_steps == 0:
            self.checkpoints.save(self.accelerator, self.step, lambda folder: save_state(self, folder))
            self.output.keep_seconds()

    def _held_out_loss(self) -> dict:
        with self.averaged():
            found = validate(
                self.accelerator,
                self.model,
                self.objective,
                self.validation,
                self.arguments.num_regions,
                progress=self.progress and self.accelerator.is_local_main_process,
            )
        self._check_finite("validation loss", found["validation_loss"])
        return found

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            blamed = "learning_rate" if self.step else "pretrained_model_name_or_path"
            raise ArgumentError(
                f"{blamed}={getattr(self.arguments, blamed)!r}: the {what} of step {self.step} is {loss}; "
                "the run stops here and keeps its checkpoints"
            )

    def _validate(self) -> None:
        self.last_validation = self._held_out_loss()
        self.output.log({"step": self.step} | self.last_validation)
        if self.controller is not None:
            self.output.picture(self.step, self.controller.table.host())

    def averaged_parameters(self) -> list[torch.nn.Parameter]:
        """Weights and routers. An average would leave the ratios short of their target."""
        return trained(self.model, "weights", "routers")

    @contextmanager
    def averaged(self):
        """The moving average takes the place of the weights inside, where there is one."""
        if self.ema is None:
            yield
            return
        parameters = self.averaged_parameters()
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)


def _check_launch(arguments: TrainArguments) -> None:
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured not in ("no", arguments.mixed_precision):
        raise ArgumentError(
            f"mixed_precision={arguments.mixed_precision!r} differs from accelerate's setting {configured!r}"
        )


def _postfix(entry: dict) -> dict:
    names = {"loss": "loss", "mean_ratio": "ratio", "target": "target"}
    return {short: f"{entry[name]:.4f}" for name, short in names.items() if name in entry}


def train(arguments: TrainArguments, progress: bool = True) -> dict:
    """Run a training to its end; returns the content of `run.json` (on the main process, else nothing)."""
    try:
        return Trainer(arguments, progress).fit()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ArgumentError(f"output_dir={arguments.output_dir!r}: {error.strerror}. {RESUME}") from error
