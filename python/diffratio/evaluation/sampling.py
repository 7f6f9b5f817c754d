"""Sampling: DPM-Solver++ through diffusers' scheduler, with classifier-free guidance."""

import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from torch import Tensor
from tqdm import tqdm

from ..models import sampling_scheduler
from ..progress import progress_bar


@torch.inference_mode()
def sample(
    model: PixArtTransformer2DModel,
    tokens: Tensor,
    null_tokens: Tensor,
    *,
    seed: int,
    side: int | None = None,
    steps: int = 20,
    guidance: float = 2.0,
    chunk: int | None = None,
    schedule: DDPMScheduler | None = None,
    description: str = "sampling",
    progress: bool = True,
) -> Tensor:
    """Return images float32 ``[n, C, H, W]`` in [-1, 1] on the CPU, of the text ``tokens`` ``[n, M, E]``.

    Each step is one forward of 2n samples: the first n with ``null_tokens`` ``[M, E]``, the last n with their
    text. The noise depends on ``seed``, ``n`` and ``side`` alone, so two models given the same seed start
    from the same noise. ``side`` is that of the images; None is the one that the model was made for.
    ``chunk`` images are made at a time; None makes all at once. The text may lie on any device. ``schedule``
    is what the model was trained with; None is that of the package's models.
    """
    n, side = len(tokens), model.config.sample_size if side is None else side
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, model.config.in_channels, side, side, generator=generator)
    chunk = n if chunk is None else chunk
    parts = -(-n // chunk)
    bar = progress_bar(total=parts * steps, show=progress, desc=description, unit="step", leave=False)
    with bar:
        images = [
            _denoise(model, some_tokens, null_tokens, some_noise, steps, guidance, schedule, bar)
            for some_tokens, some_noise in zip(tokens.split(chunk), noise.split(chunk), strict=True)
        ]
    return torch.cat(images)


def _denoise(
    model: PixArtTransformer2DModel,
    tokens: Tensor,
    null_tokens: Tensor,
    noise: Tensor,
    steps: int,
    guidance: float,
    schedule: DDPMScheduler | None,
    bar: tqdm,
) -> Tensor:
    (n, channels), device, dtype = noise.shape[:2], model.device, model.dtype
    scheduler = sampling_scheduler(schedule)
    scheduler.set_timesteps(steps, device=device)
    text = torch.cat([null_tokens.to(tokens.device).expand_as(tokens), tokens]).to(device, dtype)
    images = noise.to(device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        both = torch.cat([images, images]).to(dtype)
        predicted = model(both, encoder_hidden_states=text, timestep=timestep.expand(2 * n)).sample.float()
        # A model that learns its variance predicts it in the second half of the channels.
        without, with_text = predicted[:, :channels].chunk(2)
        images = scheduler.step(without + guidance * (with_text - without), timestep, images).prev_sample
        bar.update()
    return images.clamp(-1, 1).cpu()
