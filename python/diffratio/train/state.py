"""The state that a run resumes from: all that its next step depends on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..routing.find import transformer_of
from .controller import RatioController
from .optimizer import trained
from .sharding import is_sharded

TRAINED, AVERAGE, PROGRESS = "trained.safetensors", "ema.safetensors", "progress.json"


@dataclass
class RunState:
    """What a step changes and the next one needs. Every process saves and loads it.

    Attributes:
        accelerator: saves the optimiser it prepared and each process's random number generators.
        model: as `accelerator.prepare` returned it; only its trained parameters are saved.
        schedule: of the learning rates.
        controller: of the ratios; None where none are learned.
        ema: the moving average of `weights`; None where none is kept.
        step: optimiser steps done.
    """

    accelerator: Accelerator
    model: nn.Module
    schedule: LRScheduler
    controller: RatioController | None
    ema: EMAModel | None
    step: int = 0

    def __post_init__(self):
        if not is_sharded(self.accelerator):  # accelerate saves the shards of FSDP itself
            self.accelerator.register_save_state_pre_hook(self._save_trained)
            self.accelerator.register_load_state_pre_hook(self._load_trained)

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
        # Not by accelerate's register_for_checkpointing, which unpickles whatever lies in the folder.
        progress = {"step": self.step, "schedule": self.schedule.state_dict()}
        if self.controller is not None:
            progress["controller"] = self.controller.state_dict()
        if self.ema is not None:
            progress["ema"] = self.ema.state_dict()
            tensors = progress["ema"].pop("shadow_params")
            save_file({str(i): tensor.contiguous() for i, tensor in enumerate(tensors)}, folder / AVERAGE)
        (folder / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote: the next step is the one that would have followed, bit by bit."""
        self.accelerator.load_state(str(folder))
        progress = json.loads((folder / PROGRESS).read_text())
        self.step = progress["step"]
        self.schedule.load_state_dict(progress["schedule"])
        if self.controller is not None:
            self.controller.load_state_dict(progress["controller"])
        if self.ema is not None:
            tensors = load_file(folder / AVERAGE)
            average = {"shadow_params": [tensors[str(i)] for i in range(len(tensors))]}
            self.ema.load_state_dict(progress["ema"] | average)
            self.ema.to(self.accelerator.device)

    def _save_trained(self, models: list[nn.Module], weights: list[dict], folder: str) -> None:
        weights.clear()  # accelerate saves what is left here: nothing
        if self.accelerator.is_main_process:
            save_file(self._trained(), Path(folder) / TRAINED)

    def _load_trained(self, models: list[nn.Module], folder: str) -> None:
        models.clear()  # accelerate loads what is left here: nothing
        tensors, parameters = load_file(Path(folder) / TRAINED), self._trained()
        if tensors.keys() != parameters.keys():
            others = sorted(tensors.keys() ^ parameters.keys())[:3]
            raise ValueError(f"{folder}: {TRAINED} is of another model: {others}")
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])

    def _trained(self) -> dict[str, Tensor]:
        plain = transformer_of(self.model)
        return {name: p.detach() for name, p in plain.named_parameters() if p.requires_grad}
