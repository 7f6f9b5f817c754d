"""The error of what a model predicts of held-out images, at noise and timesteps that never change."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ..data.captioned import CaptionedDataset
from .schedules import noise_schedule

QUARTILES = 4
_CHUNK = 128


@dataclass(frozen=True)
class PredictionError:
    """Mean squared error over all timesteps, and in each quarter of them, the cleanest first."""

    overall: float
    by_quartile: list[float]


@torch.no_grad()
def prediction_error(
    model: nn.Module,
    dataset: CaptionedDataset,
    samples: int = 512,
    schedule: DDPMScheduler | None = None,
) -> PredictionError:
    """Return the error of ``model`` on the first ``samples`` images of ``dataset`` (all where it has fewer).

    ``schedule`` adds the noise and tells what is predicted: the velocity, the noise or the image; None is the
    schedule of the package's models, which predict velocity. The timesteps are spread evenly over 0 ... 999,
    one for each image; the noise has seed 0.
    """
    n = min(samples, len(dataset))
    if n < QUARTILES:
        few = f"samples={samples}" if samples < QUARTILES else f"dataset: {dataset.name!r} has {n} images, it"
        raise ValueError(f"{few} must be at least {QUARTILES}")
    schedule = noise_schedule() if schedule is None else schedule
    batch = dataset.batch(range(n))
    images, tokens = batch["pixel_values"], batch["tokens"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.linspace(0, 999, n).long()[torch.randperm(n, generator=generator)]
    # Sorted, so that a batch needs few timestep regions.
    order = timesteps.argsort()
    images, tokens, timesteps, noise = (x[order] for x in (images, tokens, timesteps, noise))
    chunks = zip(*(x.split(_CHUNK) for x in (images, tokens, timesteps, noise)), strict=True)
    errors = torch.cat([_errors(model, schedule, *chunk) for chunk in chunks])
    quartile = timesteps * QUARTILES // 1000
    return PredictionError(
        errors.mean().item(), [errors[quartile == q].mean().item() for q in range(QUARTILES)]
    )


def _errors(
    model: nn.Module,
    schedule: DDPMScheduler,
    images: Tensor,
    tokens: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Mean squared error of each sample, float64 [n] on the CPU."""
    anchor = next(model.parameters())
    noisy = schedule.add_noise(images, noise, timesteps)
    targets = {"epsilon": noise, "sample": images}
    target = targets.get(schedule.config.prediction_type)
    if target is None:
        target = schedule.get_velocity(images, noise, timesteps)
    predicted = model(
        noisy.to(anchor.device, anchor.dtype),
        encoder_hidden_states=tokens.to(anchor.device, anchor.dtype),
        timestep=timesteps.to(anchor.device),
    ).sample
    # A model that learns its variance predicts it in the second half of the channels.
    predicted = predicted[:, : images.shape[1]]
    return (predicted.cpu().double() - target.double()).square().flatten(1).mean(1)
