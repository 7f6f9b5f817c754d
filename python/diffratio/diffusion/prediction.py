"""The error of what a model predicts of held-out images, at noise and timesteps that never change."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import nn

from ..data.captioned import CaptionedDataset
from .schedules import noise_schedule, target_of

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
    order = timesteps.argsort()  # a batch needs few timestep regions then
    anchor, errors = next(model.parameters()), []
    for rows in order.split(_CHUNK):
        clean, some_noise, timestep = images[rows], noise[rows], timesteps[rows]
        predicted = model(
            schedule.add_noise(clean, some_noise, timestep).to(anchor.device, anchor.dtype),
            encoder_hidden_states=tokens[rows].to(anchor.device, anchor.dtype),
            timestep=timestep.to(anchor.device),
        ).sample
        # A model that learns its variance predicts it in the second half of the channels.
        predicted = predicted[:, : clean.shape[1]].cpu().double()
        target = target_of(schedule, clean, some_noise, timestep).double()
        errors.append((predicted - target).square().flatten(1).mean(1))
    error, quartile = torch.cat(errors), timesteps[order] * QUARTILES // 1000
    return PredictionError(
        error.mean().item(), [error[quartile == q].mean().item() for q in range(QUARTILES)]
    )
