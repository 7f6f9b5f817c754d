"""What is written of a run: the state that it resumes from, and the model that others load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..adapter import save_diffratio
from ..patch import transformer_of
from .base import load_base, prepare_model
from .sharding import is_sharded

if TYPE_CHECKING:
    from .trainer import Trainer

ADAPTER, TRAINED, AVERAGE, PROGRESS = "adapter", "trained.safetensors", "ema.safetensors", "progress.json"
SCHEDULER = "scheduler"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_state(trainer: Trainer, folder: Path) -> None:
    """Everything that the next step depends on, and the model so far as an adapter. Runs on every process."""
    trainer.accelerator.save_state(str(folder))
    if trainer.accelerator.is_main_process:
        progress = {"step": trainer.step, "schedule": trainer.schedule.state_dict()}
        if trainer.controller is not None:
            progress["controller"] = trainer.controller.state_dict()
        if trainer.ema is not None:
            average = trainer.ema.state_dict()
            tensors = average.pop("shadow_params")
            save_file({str(i): tensor.contiguous() for i, tensor in enumerate(tensors)}, folder / AVERAGE)
            progress["ema"] = average
        (folder / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n")
    save_adapter(trainer, folder / ADAPTER)


def load_state(trainer: Trainer, folder: Path) -> int:
    """Undo `save_state`; returns the step."""
    trainer.accelerator.load_state(str(folder))
    progress = json.loads((folder / PROGRESS).read_text())
    trainer.schedule.load_state_dict(progress["schedule"])
    if trainer.controller is not None:
        trainer.controller.load_state_dict(progress["controller"])
    if trainer.ema is not None:
        tensors = load_file(folder / AVERAGE)
        average = {"shadow_params": [tensors[str(i)] for i in range(len(tensors))]}
        trainer.ema.load_state_dict(progress["ema"] | average)
        trainer.ema.to(trainer.accelerator.device)
    return progress["step"]


def keep_trained_only(accelerator: Accelerator) -> None:
    """Let accelerate save and load the trained parameters alone; FSDP's shards stay its own matter."""
    if is_sharded(accelerator):
        return

    def save(models: list[nn.Module], weights: list[dict], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            save_file(_trained(models[0]), Path(folder) / TRAINED)

    def load(models: list[nn.Module], folder: str) -> None:
        tensors, trained = load_file(Path(folder) / TRAINED), _trained(models.pop())
        if set(tensors) != set(trained):
            raise ValueError(
                f"{folder}: {TRAINED} is of another model: {sorted(set(tensors) ^ set(trained))[:3]}"
            )
        for name, tensor in trained.items():
            tensor.copy_(tensors[name])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    plain = transformer_of(model)
    return {name: p.detach() for name, p in plain.named_parameters() if p.requires_grad}


def save_adapter(trainer: Trainer, folder: Path) -> None:
    """The model as `load_run` reads it: its weights or LoRA, and the routers with their ratios; and beside it
    the noise that it was trained with, as in diffusers' pipelines."""
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        trainer.base.scheduler.save_pretrained(folder / SCHEDULER)
    if is_sharded(accelerator):
        weights = accelerator.get_state_dict(trainer.model)  # every process takes part
        if accelerator.is_main_process:
            # New LoRA weights are drawn; the generators' states are in the checkpoint already.
            with torch.random.fork_rng(devices=[]):
                model = prepare_model(load_base(trainer.arguments).model, trainer.arguments)
            model.load_state_dict(weights)
            write_model(model, folder)
        return
    with trainer.averaged():
        if accelerator.is_main_process:
            write_model(accelerator.unwrap_model(trainer.model), folder)


def write_model(model: nn.Module, folder: Path) -> None:
    """LoRA in PEFT's layout or plain weights in diffusers', neither with routers; those beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = transformer_of(model)
    if plain is not model:
        model.save_pretrained(str(folder), safe_serialization=True)
    else:
        plain.save_config(folder)
        weights = {
            name: tensor.contiguous()
            for name, tensor in plain.state_dict().items()
            if "diffratio" not in name.split(".") and not name.startswith("diffratio_ratios.")
        }
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    if "_diffratio_plan" in vars(plain):
        save_diffratio(plain, folder)
