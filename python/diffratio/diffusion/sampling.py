"""Sampling: DPM-Solver++ through diffusers' scheduler, with classifier-free guidance."""

from dataclasses import dataclass, replace

import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from torch import Tensor
from tqdm import tqdm

from ..progress import progress_bar
from .schedules import sampling_scheduler

CHUNK = 128  # images that are made at a time


@dataclass(frozen=True)
class GuidedText:
    """What n images are to show.

    Attributes:
        tokens: ``[n, M, E]``, on any device.
        null_tokens: ``[M, E]``, stands for no text.
        guidance: weight of classifier-free guidance; 1 is none, 0 leaves the text out.
    """

    tokens: Tensor
    null_tokens: Tensor
    guidance: float = 2.0


@torch.inference_mode()
def sample(
    model: PixArtTransformer2DModel,
    text: GuidedText,
    *,
    seed: int,
    steps: int = 20,
    side: int | None = None,
    schedule: DDPMScheduler | None = None,
    bar: str | None = "sampling",
) -> Tensor:
    """Sample one image for each row of ``text``.

    Each step is one forward of 2n samples: the first n with the null tokens, the last n with their text.

    Args:
        model: a PixArt transformer; one that learns its variance too.
        text: what the n images are to show.
        seed: of the noise, which depends on ``seed``, n and ``side`` alone: two models given the same seed
            start from the same noise.
        steps: steps of the solver.
        side: of the images; None is the one that the model was made for.
        schedule: what the model was trained with; None is that of the package's models.
        bar: title of the progress bar on standard error; None shows none.

    Returns:
        Images float32 ``[n, C, side, side]`` in [-1, 1] on the CPU.
    """
    n, side = len(text.tokens), model.config.sample_size if side is None else side
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, model.config.in_channels, side, side, generator=generator)
    chunks = list(zip(text.tokens.split(CHUNK), noise.split(CHUNK), strict=True))
    with progress_bar(
        total=len(chunks) * steps, show=bar is not None, desc=bar, unit="step", leave=False
    ) as shown:
        images = [
            _denoise(model, replace(text, tokens=tokens), some_noise, steps, schedule, shown)
            for tokens, some_noise in chunks
        ]
    return torch.cat(images)


def _denoise(
    model: PixArtTransformer2DModel,
    text: GuidedText,
    noise: Tensor,
    steps: int,
    schedule: DDPMScheduler | None,
    bar: tqdm,
) -> Tensor:
    """[n, C, H, W] from noise like it; a scheduler has a state, so each call has its own."""
    (n, channels), device, dtype = noise.shape[:2], model.device, model.dtype
    scheduler = sampling_scheduler(schedule)
    scheduler.set_timesteps(steps, device=device)
    tokens = text.tokens
    tokens = torch.cat([text.null_tokens.to(tokens.device).expand_as(tokens), tokens]).to(device, dtype)
    images = noise.to(device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        both = torch.cat([images, images]).to(dtype)
        predicted = model(both, encoder_hidden_states=tokens, timestep=timestep.expand(2 * n)).sample.float()
        # A model that learns its variance predicts it in the second half of the channels.
        without, with_text = predicted[:, :channels].chunk(2)
        images = scheduler.step(without + text.guidance * (with_text - without), timestep, images).prev_sample
        bar.update()
    return images.clamp(-1, 1).cpu()
