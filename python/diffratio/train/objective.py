"""The loss of a diffusion, in whatever the scheduler says that the model predicts, or of a flow; and its
held-out mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..diffusion.flow import mixed
from ..diffusion.pipelines import Family
from ..diffusion.schedules import PREDICTED, target_of
from ..diffusion.sizes import told_sizes
from ..diffusion.variance import WEIGHT, VariationalBound
from ..progress import progress_bar
from ..routing.find import transformer_of
from .arguments import ArgumentError, TrainArguments
from .times import NoiseLevels, Timesteps

if TYPE_CHECKING:  # `eval` judges repainting where accelerate need not be
    from accelerate import Accelerator


def clean_image(item: dict[str, Tensor]) -> Tensor:
    """Return the latents of an item or batch, else its pixels."""
    return item["latents"] if "latents" in item else item["pixel_values"]


class Objective:
    """The loss of each sample, weighted by min-SNR where asked for, and what trains the variance.

    Args:
        model: the transformer; says whether it takes text (PixArt) or classes (DiT).
        scheduler: the noise that it was trained on, and what it predicts.
        snr_gamma: the largest signal-to-noise ratio that counts; None weighs all timesteps alike.
        learn_variance: whether the second half of the model's channels is trained, too.

    Raises:
        ArgumentError: the scheduler predicts something else than noise, velocity or image.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: DDPMScheduler,
        snr_gamma: float | None = None,
        learn_variance: bool = False,
    ):
        self.scheduler, self.snr_gamma = scheduler, snr_gamma
        plain = transformer_of(model)
        self.by_class = "class_labels" in inspect.signature(type(plain).forward).parameters
        self.sized = bool(getattr(plain, "use_additional_conditions", False))
        if scheduler.config.prediction_type not in PREDICTED:
            raise ArgumentError(
                "pretrained_model_name_or_path: its scheduler has prediction_type "
                f"{scheduler.config.prediction_type!r}, which is not epsilon, v_prediction or sample"
            )
        self.channels = plain.config.in_channels if hasattr(plain, "config") else None
        self.times = Timesteps(scheduler.config.num_train_timesteps)
        self._bound = VariationalBound(scheduler) if learn_variance else None

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return float32 [B].

        Args:
            model: as given to the constructor, or a wrapper of it.
            batch: latents or pixel_values [B, C, H, W], noise like them, timestep int64 [B], and tokens
                [B, M, E] with an optional mask [B, M] (PixArt) or attributes [B, A], class first (DiT).
        """
        clean, noise, timestep = clean_image(batch), batch["noise"], batch["timestep"]
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        predicted, mean = self._predict(model, noisy, batch)
        # A model that learns its variance predicts it in the second half of the channels.
        predicted, variance = predicted.float().tensor_split([clean.shape[1]], dim=1)
        error = predicted - target_of(self.scheduler, clean, noise, timestep).float()
        loss = mean(error.square())
        if self.snr_gamma is not None:
            loss = loss * self._snr_weight(timestep)
        if self._bound is not None:
            loss = loss + WEIGHT * self.times.count * mean(self._bound(error, variance, timestep))
        return loss

    @property
    def name(self) -> str:
        """The loss, named as in evaluation: v-MSE, noise-MSE or image-MSE."""
        name = f"{PREDICTED[self.scheduler.config.prediction_type]}-MSE"
        name = name if self.snr_gamma is None else f"{name}, min-SNR weighted"
        return name if self._bound is None else f"{name} + variational bound"

    def _predict(
        self, model: nn.Module, noisy: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What the model predicts [B, C or 2 C, ...], and how values like it are averaged, to [B]."""
        predicted = model(noisy, timestep=batch["timestep"], **self.condition(batch), return_dict=False)[0]
        return predicted, lambda values: values.flatten(1).mean(1)

    def condition(self, batch: dict[str, Tensor]) -> dict:
        """Return what the model is given beside image and timestep."""
        if self.by_class:
            return {"class_labels": batch["attributes"][:, 0]}
        return {
            "encoder_hidden_states": batch["tokens"],
            "encoder_attention_mask": batch.get("mask"),
            "added_cond_kwargs": told_sizes(batch["original_size"].float() if self.sized else None),
        }

    def _snr_weight(self, timestep: Tensor) -> Tensor:
        """min(snr, gamma) in units of the clean image, divided by what the target weighs it with."""
        snr = compute_snr(self.scheduler, timestep)
        clamped = snr.clamp(max=self.snr_gamma)
        kind = self.scheduler.config.prediction_type
        return clamped / {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[kind]


class FlowObjective:
    """The squared error of the velocity of each sample, through the family's own call of its transformer.

    Args:
        family: of the pipeline.
        scheduler: of the pipeline, which shifts noise levels.
        arguments: how noise levels are drawn, and the scale that a distilled model is told.

    Raises:
        ArgumentError: min-SNR weighting, which is of a diffusion with betas.
    """

    by_class, name = False, "velocity-MSE"

    def __init__(self, family: Family, scheduler: SchedulerMixin, arguments: TrainArguments):
        if arguments.snr_gamma is not None:
            raise ArgumentError(f"snr_gamma={arguments.snr_gamma!r} is not for flow models")
        self.family, self.guidance = family, arguments.guidance_scale
        draw = arguments.weighting_scheme, arguments.logit_mean, arguments.logit_std
        self.times = NoiseLevels(family, scheduler, *draw)

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return float32 [B].

        Args:
            model: the transformer, or a wrapper of it.
            batch: latents or pixel_values [B, C, ...], noise like them, timestep [B] in [0, 1], and the
                family's text.
        """
        clean, noise = (self.family.fold(x) for x in (clean_image(batch), batch["noise"]))
        level = batch["timestep"]
        predicted = self.family.predict(model, mixed(clean, noise, level), level, batch, self.guidance)
        return (predicted.float() - (noise - clean)).square().flatten(1).mean(1)


@torch.no_grad()
def validate(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective | FlowObjective,
    loader: DataLoader,
    regions: int,
    progress: bool = False,
) -> dict:
    """Average the loss over held-out images, at noise and timesteps that never change.

    Args:
        accelerator: of the processes that share the images.
        model, objective: what is judged, and by what.
        loader: over `ValidationSamples`, as `accelerator.prepare` returned it.
        regions: R, timestep regions to tell apart.
        progress: whether to show a bar.

    Returns:
        `validation_loss`, and `validation_by_region` [R] from the cleanest timesteps to the noisiest, None
        where a region has no image. The same on every process.
    """
    training = model.training
    model.eval()
    losses, timesteps, rows = [], [], []
    for batch in progress_bar(loader, show=progress, desc="validating", unit="batch", leave=False):
        with accelerator.autocast():
            error = objective(model, batch)
        error, timestep, row = accelerator.gather((error, batch["timestep"], batch["row"]))
        losses.append(error.double().cpu())
        timesteps.append(timestep.cpu())
        rows += row.tolist()
    model.train(training)
    # Processes get equally many batches of one size: some images twice.
    once = sorted({row: place for place, row in reversed([*enumerate(rows)])}.values())
    error, timestep = torch.cat(losses)[once], torch.cat(timesteps)[once]
    region = objective.times.region(timestep, regions)
    means = [error[region == r] for r in range(regions)]
    return {
        "validation_loss": error.mean().item(),
        "validation_by_region": [one.mean().item() if len(one) else None for one in means],
    }
