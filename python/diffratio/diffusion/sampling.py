"""Sampling through diffusers' schedulers, with classifier-free guidance."""

from collections.abc import Iterator

import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from torch import Tensor

from ..data.randomness import mixed_seed
from ..progress import progress_bar
from .schedules import sampling_scheduler
from .variance import predicts_variance

CHUNK = 128  # images that are made at a time


def sample(model: PixArtTransformer2DModel, tokens: Tensor, null_tokens: Tensor, **how) -> Tensor:
    """Sample one image for each text: all of ``samples``, ``[n, C, side, side]``."""
    return torch.cat(list(samples(model, tokens, null_tokens, **how)))


@torch.inference_mode()
def samples(
    model: PixArtTransformer2DModel,
    tokens: Tensor,
    null_tokens: Tensor,
    *,
    seed: int,
    sampler: str = "dpm++",
    steps: int = 20,
    guidance: float = 2.0,
    side: int | None = None,
    schedule: DDPMScheduler | None = None,
    bar: str | None = "sampling",
    first: int = 0,
) -> Iterator[Tensor]:
    """Sample one image for each text, chunk by chunk.

    Each step is one forward of 2n samples: the first n with the null tokens, the last n with their text.

    Args:
        model: a PixArt transformer; one that learns its variance too.
        tokens: what the n images are to show, ``[n, M, E]``, on any device.
        null_tokens: ``[M, E]``, stands for no text.
        seed: of the noise, which depends on ``seed``, n and ``side`` alone: two models given the same seed
            start from the same noise.
        sampler: "dpm++", or "ddpm", which uses the variance that a model has learned.
        steps: steps of the sampler.
        guidance: weight of classifier-free guidance; 1 is none, 0 leaves the text out.
        side: of the images; None is the one that the model was made for.
        schedule: what the model was trained with; None is that of the package's models.
        bar: title of the progress bar on standard error; None shows none.
        first: number of the first image that is made, a multiple of ``CHUNK``.

    Yields:
        Images float32 ``[m, C, side, side]`` in [-1, 1] on the CPU.
    """
    n, side = len(tokens), model.config.sample_size if side is None else side
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, model.config.in_channels, side, side, generator=generator)
    null_tokens = null_tokens.to(tokens.device)
    columns = (part[first:].split(CHUNK) for part in (tokens, noise, torch.arange(n)))
    chunks, learned = list(zip(*columns, strict=True)), predicts_variance(model)
    with progress_bar(
        total=len(chunks) * steps, show=bar is not None, desc=bar, unit="step", leave=False
    ) as shown:
        for some, images, numbers in chunks:
            scheduler = sampling_scheduler(schedule, sampler, learned)  # it has a state
            scheduler.set_timesteps(steps, device=model.device)
            drawn = [torch.Generator().manual_seed(mixed_seed(seed, row)) for row in numbers.tolist()]
            text = torch.cat([null_tokens.expand_as(some), some]).to(model.device, model.dtype)
            images = images.to(model.device) * scheduler.init_noise_sigma
            for timestep in scheduler.timesteps:
                predicted = _predict(model, images, text, timestep, guidance)
                if sampler == "dpm++":
                    predicted = predicted[:, : images.shape[1]]
                images = scheduler.step(predicted, timestep, images, generator=drawn).prev_sample
                shown.update()
            yield images.clamp(-1, 1).cpu()


def _predict(
    model: PixArtTransformer2DModel, images: Tensor, text: Tensor, timestep: Tensor, guidance: float
) -> Tensor:
    """What the model predicts, guided, float32 like ``images``; behind it the variance of the text's half,
    where there is one."""
    n, channels = images.shape[:2]
    both = torch.cat([images, images]).to(model.dtype)
    predicted = model(both, encoder_hidden_states=text, timestep=timestep.expand(2 * n)).sample.float()
    return guided(predicted, channels, guidance)


def guided(predicted: Tensor, channels: int, guidance: float) -> Tensor:
    """Of predictions without text and with it [2B, ...] one [B, ...]: the mean, of C channels, guided; a
    learned variance, in the others, that of the text."""
    without, with_text = predicted.chunk(2)
    mean = without[:, :channels] + guidance * (with_text - without)[:, :channels]
    return torch.cat([mean, with_text[:, channels:]], dim=1)
