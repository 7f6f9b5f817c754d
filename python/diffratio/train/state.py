"""The state that a run resumes from: all that its next step depends on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..routing.find import transformer_of
from .controller import RatioController
from .optimizer import trained
from .ramp import RatioRamp
from .sharding import is_sharded

TRAINED, PROGRESS = "trained.safetensors", "progress.json"


@dataclass
class RunState:
    """What a step changes and the next one needs. Every process saves and loads it.

    Attributes:
        accelerator: saves the optimiser it prepared and each process's random number generators.
        model: as `accelerator.prepare` returned it; only its trained parameters are saved.
        schedule: of the learning rates.
        controller: of the ratios; None where there are none.
        ema: the moving average of `weights`; None where none is kept.
        step: optimiser steps done.
    """

    accelerator: Accelerator
    model: nn.Module
    schedule: LRScheduler
    controller: RatioController | RatioRamp | None
    ema: EMAModel | None
    step: int = 0

    def __post_init__(self):
        if not is_sharded(self.accelerator):  # accelerate saves the shards of FSDP itself
            # It saves and loads what is left in the lists: nothing.
            self.accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
            self.accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    @property
    def weights(self) -> list[nn.Parameter]:
        """Trained weights and routers. An average would leave the ratios short of their target."""
        return trained(self.model, "weights", "routers")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the moving average replaces the weights, where there is one."""
        if self.ema is None:
            yield
            return
        weights = self.weights
        self.ema.store(weights)
        self.ema.copy_to(weights)
        try:
            yield
        finally:
            self.ema.restore(weights)

    def save(self, folder: Path) -> None:
        """Write everything into `folder`, on every process."""
        self.accelerator.save_state(str(folder))
        if not self.accelerator.is_main_process:
            return
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, folder / TRAINED)
        # Not by accelerate's register_for_checkpointing, which unpickles whatever lies in the folder.
        progress = {"step": self.step, "schedule": self.schedule.state_dict()}
        if self.controller is not None:
            progress["controller"] = self.controller.state_dict()
        if self.ema is not None:
            progress["ema"] = self.ema.state_dict() | {"shadow_params": None}
        (folder / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore what `save` wrote: the next step is the one that would have followed, bit by bit."""
        self.accelerator.load_state(str(folder))
        saved, tensors = load_file(folder / TRAINED), self._tensors()
        if saved.keys() != tensors.keys():
            others = sorted(saved.keys() ^ tensors.keys())[:3]
            raise ValueError(f"{folder}: {TRAINED} is of another model: {others}")
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
        progress = json.loads((folder / PROGRESS).read_text())
        self.step = progress["step"]
        self.schedule.load_state_dict(progress["schedule"])
        if self.controller is not None:
            self.controller.load_state_dict(progress["controller"])
        if self.ema is not None:
            self.ema.load_state_dict(progress["ema"])

    def _tensors(self) -> dict[str, Tensor]:
        """The trained parameters that accelerate does not save, and their average."""
        plain, found = transformer_of(self.model), {}
        if not is_sharded(self.accelerator):
            found = {name: p.detach() for name, p in plain.named_parameters() if p.requires_grad}
        average = [] if self.ema is None else self.ema.shadow_params
        return found | {f"average.{i}": tensor for i, tensor in enumerate(average)}
