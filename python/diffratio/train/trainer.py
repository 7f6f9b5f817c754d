"""The training loop, on accelerate."""

import errno
import math
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from ..progress import progress_bar
from ..routing.find import transformer_of
from ..routing.ratios import table_of
from .arguments import ArgumentError, TrainArguments
from .checkpoints import replacing
from .controller import RatioController
from .data import load_splits, origin, training_loader, validation_loader
from .encoded import EncodedDataset
from .model import ADAPTER, check_variance, load_base, prepare_model, write_model
from .objective import validate
from .optimizer import make_optimizer, trained
from .output import Output
from .recipes import sampling_of
from .sharding import full_model, prepare_sharding, reduce_ratio_gradient
from .state import RunState

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHOWN = {"loss": "loss", "ratio": "mean_ratio", "target": "target"}
"""Figures beside the bar, by their names in the log."""
RESUME = "Checkpoints are kept: make room and go on with --resume_from_checkpoint latest"


class Trainer:
    """One run: `Trainer(arguments).fit()`.

    Args:
        arguments: all that a run depends on.
        progress: whether to show bars on a terminal.

    Raises:
        ArgumentError: an argument that does not fit the model, the data, the folder or accelerate's launch.
    """

    def __init__(self, arguments: TrainArguments, progress: bool = True):
        self.arguments = arguments
        _check_launch(arguments)
        root = Path(arguments.output_dir)
        self.accelerator = Accelerator(
            # Without an accelerator, launched processes would not know of each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=arguments.mixed_precision,
            # The number alone would give way to one in the environment.
            gradient_accumulation_plugin=GradientAccumulationPlugin(arguments.gradient_accumulation_steps),
            log_with=None if arguments.report_to == "none" else arguments.report_to,
            project_config=ProjectConfiguration(root, str(root / arguments.logging_dir)),
        )
        self.progress = progress and self.accelerator.is_local_main_process
        prepare_sharding(self.accelerator, arguments)
        set_seed(arguments.seed)
        self.output = Output(arguments, self.accelerator)
        self.base = load_base(arguments)
        check_variance(self.base, arguments)
        self.dataset, held_out = load_splits(arguments, self.base, self.accelerator, self.progress)
        model = prepare_model(self.base, arguments)
        optimizer = make_optimizer(model, arguments)
        schedule = get_scheduler(
            arguments.lr_scheduler,
            optimizer,
            num_warmup_steps=arguments.lr_warmup_steps,
            num_training_steps=arguments.max_train_steps,
        )
        model, self.optimizer, self.validation = self.accelerator.prepare(
            model, optimizer, validation_loader(arguments, self.base, held_out)
        )
        controller = ema = None
        if arguments.learns_ratios:
            controller = RatioController(
                table_of(model),
                arguments.target_compression,
                arguments.max_train_steps,
                weight=arguments.fixed_ratio_weight(),
            )
        if arguments.use_ema:
            weights = trained(model, "weights", "routers")
            ema = EMAModel(weights, decay=arguments.ema_max_decay, foreach=True)
        self.state = RunState(self.accelerator, model, schedule, controller, ema)
        self.last_validation = {}

    def fit(self) -> dict:
        """Train to the last step and write the model to `final/`.

        Returns:
            The content of `run.json` on the main process, nothing on the others.

        Raises:
            ArgumentError: a loss that is not finite, or a checkpoint that cannot be written.
        """
        # Processes must not drop the same class labels.
        set_seed(self.arguments.seed, device_specific=True)
        if self.output.resumes_from is not None:
            self.state.load(self.output.checkpoints.path(self.output.resumes_from))
        self.output.open(self._facts())
        if self.state.step < self.arguments.max_train_steps:
            if self.state.step == 0:
                self._validate()
            self._train()
        else:  # killed after its last checkpoint, or finished before
            self.last_validation = self._held_out_loss()
        with replacing(self.accelerator, self.output.root / "final") as folder:
            self.save_adapter(folder)
        controller = self.state.controller
        ratios = {} if controller is None else {"ratios": controller.table.host()}
        return self.output.close(step=self.state.step, **self.last_validation, **ratios)

    def save_adapter(self, folder: Path) -> None:
        """Write the model so far as `load_run` reads it, and beside it the noise that it was trained with, as
        in diffusers' pipelines. Every process takes part."""
        if self.accelerator.is_main_process:
            self.base.scheduler.save_pretrained(folder / "scheduler")
        with self.state.averaged():
            model = full_model(self.accelerator, self.state.model, self.arguments)
            if model is not None:
                write_model(model, folder)

    def _facts(self) -> dict:
        parameters = transformer_of(self.state.model).parameters()
        return {
            **origin(self.arguments, self.base),
            "loss": self.base.objective.name,
            "latents": isinstance(self.dataset, EncodedDataset),
            "flow": self.base.family is not None,
            "sampling": sampling_of(self.arguments.recipe),
            "processes": self.accelerator.num_processes,
            "parameters": {
                "total": sum(p.numel() for p in parameters),
                "trained": sum(p.numel() for p in trained(self.state.model)),
            },
        }

    def _train(self) -> None:
        processes = self.accelerator.num_processes
        loader = training_loader(self.arguments, self.base, self.dataset, processes, self.state.step)
        loader = self.accelerator.prepare(loader)
        self.state.model.train()
        with progress_bar(
            total=self.arguments.max_train_steps,
            show=self.progress,
            initial=self.state.step,
            desc=f"training {self.arguments.method}",
            unit="step",
        ) as bar:
            self._run_steps(loader, bar)

    def _run_steps(self, loader, bar: tqdm) -> None:
        losses, start = [], time.perf_counter()
        for batch in loader:
            losses.append(self._forward_backward(batch))
            if not self.accelerator.sync_gradients:
                continue
            entry = self._finish_step(losses)
            self.output.log(entry | {"seconds": time.perf_counter() - start})
            shown = {short: f"{entry[name]:.4f}" for short, name in SHOWN.items() if name in entry}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            losses = []
            self._validate_and_save()
            start = time.perf_counter()

    def _forward_backward(self, batch: dict[str, Tensor]) -> Tensor:
        """One micro-batch; the optimiser steps when it is the last of its step. Returns both losses, [2]."""
        model, controller = self.state.model, self.state.controller
        with self.accelerator.accumulate(model):
            with self.accelerator.autocast():
                loss = self.base.objective(model, batch).mean()
            ratio_loss = torch.zeros_like(loss) if controller is None else controller.loss(model)
            self.accelerator.backward(loss + ratio_loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.state.weights, self.arguments.max_grad_norm)
                if controller is not None:
                    reduce_ratio_gradient(self.accelerator, controller.table.ratios)
                    controller.before_step()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return torch.stack([loss.detach(), ratio_loss.detach()])

    def _finish_step(self, losses: list[Tensor]) -> dict:
        """Update what follows the optimiser; returns the step's line of the log."""
        state = self.state
        state.step += 1
        loss, ratio_loss = self.accelerator.reduce(torch.stack(losses).mean(0), "mean").tolist()
        self._check_finite("loss", loss + ratio_loss)
        entry = {"step": state.step, "loss": loss, "lr": state.schedule.get_last_lr()[0]}
        state.schedule.step()
        if state.ema is not None:
            state.ema.step(state.weights)
        if state.controller is not None:
            state.controller.after_step()
            ratios = state.controller.table.host()
            self.output.log_ratios(state.step, ratios)
            entry |= {
                "ratio_loss": ratio_loss,
                "ratio_weight": state.controller.weight,
                "mean_ratio": sum(map(sum, ratios)) / sum(map(len, ratios)),
                "target": state.controller.target,
            }
        return entry

    def _validate_and_save(self) -> None:
        step = self.state.step
        last = step == self.arguments.max_train_steps
        if last or step % self.arguments.validation_steps == 0:
            self._validate()
        if last or step % self.arguments.checkpointing_steps == 0:
            with self.output.checkpoints.writing(self.accelerator, step) as folder:
                self.state.save(folder)
                self.save_adapter(folder / ADAPTER)
            self.output.keep_seconds()

    def _validate(self) -> None:
        self.last_validation = self._held_out_loss()
        self.output.log({"step": self.state.step} | self.last_validation)
        if self.state.controller is not None:
            self.output.picture(self.state.step, self.state.controller.table.host())

    def _held_out_loss(self) -> dict:
        model, objective, regions = self.state.model, self.base.objective, self.arguments.num_regions
        with self.state.averaged():
            found = validate(self.accelerator, model, objective, self.validation, regions, self.progress)
        self._check_finite("validation loss", found["validation_loss"])
        return found

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            step = self.state.step
            blamed = "learning_rate" if step else "pretrained_model_name_or_path"
            raise ArgumentError(
                f"{blamed}={getattr(self.arguments, blamed)!r}: the {what} of step {step} is {loss}; "
                "the run stops here and keeps its checkpoints"
            )


def _check_launch(arguments: TrainArguments) -> None:
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured not in ("no", arguments.mixed_precision):
        raise ArgumentError(
            f"mixed_precision={arguments.mixed_precision!r} differs from accelerate's setting {configured!r}"
        )


def train(arguments: TrainArguments, progress: bool = True) -> dict:
    """Run a training to its end.

    Args:
        arguments: all that a run depends on.
        progress: whether to show bars on a terminal.

    Returns:
        The content of `run.json` on the main process, nothing on the others.

    Raises:
        ArgumentError: what `Trainer` and its `fit` raise, and a disk that is full.
    """
    try:
        return Trainer(arguments, progress).fit()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ArgumentError(f"output_dir={arguments.output_dir!r}: {error.strerror}. {RESUME}") from error
