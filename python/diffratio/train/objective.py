"""The diffusion loss, in whatever the scheduler says that the model predicts."""

from __future__ import annotations

import inspect

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from ..models import PREDICTED
from ..patch import transformer_of
from .arguments import ArgumentError
from .samples import CLEAN


class Objective:
    """`objective(model, batch)` -> the loss of each sample, float32 [B].

    batch: latents or pixel_values [B, C, H, W], noise like them, timestep int64 [B], and tokens [B, M, E]
    with an optional mask [B, M] (PixArt) or attributes [B, A] with the class first (DiT).
    """

    def __init__(self, model: nn.Module, scheduler: DDPMScheduler, snr_gamma: float | None = None):
        self.scheduler, self.snr_gamma = scheduler, snr_gamma
        plain = transformer_of(model)
        self.by_class = "class_labels" in inspect.signature(type(plain).forward).parameters
        self.sized = bool(getattr(plain, "use_additional_conditions", False))
        if scheduler.config.prediction_type not in PREDICTED:
            raise ArgumentError(
                "pretrained_model_name_or_path: its scheduler has prediction_type "
                f"{scheduler.config.prediction_type!r}, which is not epsilon, v_prediction or sample"
            )

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        clean = next(batch[name] for name in CLEAN if name in batch)
        noise, timestep = batch["noise"], batch["timestep"]
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        predicted = model(noisy, timestep=timestep, **self._condition(batch), return_dict=False)[0]
        # A model that learns its variance predicts it in the second half of the channels.
        predicted = predicted[:, : clean.shape[1]].float()
        error = (predicted - self._target(clean, noise, timestep).float()).square().flatten(1).mean(1)
        return error if self.snr_gamma is None else error * self._snr_weight(timestep)

    @property
    def name(self) -> str:
        """Of the loss, as in evaluation: v-MSE, noise-MSE or image-MSE."""
        name = f"{PREDICTED[self.scheduler.config.prediction_type]}-MSE"
        return name if self.snr_gamma is None else f"{name}, min-SNR weighted"

    def _condition(self, batch: dict[str, Tensor]) -> dict:
        if self.by_class:
            return {"class_labels": batch["attributes"][:, 0]}
        sizes = {"resolution": None, "aspect_ratio": None}
        if self.sized:
            size = batch["original_size"].float()
            sizes = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
        return {
            "encoder_hidden_states": batch["tokens"],
            "encoder_attention_mask": batch.get("mask"),
            "added_cond_kwargs": sizes,
        }

    def _target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(clean, noise, timestep)
        return noise if kind == "epsilon" else clean

    def _snr_weight(self, timestep: Tensor) -> Tensor:
        """min(snr, gamma) in units of the clean image, divided by what the target weighs it with."""
        snr = compute_snr(self.scheduler, timestep)
        clamped = snr.clamp(max=self.snr_gamma)
        kind = self.scheduler.config.prediction_type
        return clamped / {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[kind]
