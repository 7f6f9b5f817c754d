"""Sampling: DPM-Solver++ through diffusers' scheduler, with classifier-free guidance."""

import sys

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor
from tqdm import tqdm

from ..data.digits import CLASSES, NULL_CLASS, SIZE
from ..models import sampling_scheduler


def balanced_labels(per_class: int) -> Tensor:
    """Return int64 ``[10 * per_class]``: every class in turn, so that row i of a grid is class i."""
    return torch.arange(CLASSES).repeat_interleave(per_class)


@torch.inference_mode()
def sample(
    model: PixArtTransformer2DModel,
    class_tokens: Tensor,
    labels: Tensor,
    *,
    seed: int,
    steps: int = 20,
    guidance: float = 2.0,
    description: str = "sampling",
    progress: bool = True,
) -> Tensor:
    """Return images float32 ``[n, 1, 8, 8]`` in [-1, 1] on the CPU, of the given ``labels`` (int64 ``[n]``).

    Each step is one forward of 2n samples: the first n without a class, the last n with theirs. The noise
    depends on ``seed`` and ``n`` alone, so two models given the same seed start from the same noise.
    ``class_tokens`` lie on the device of ``model``.
    """
    n = len(labels)
    scheduler = sampling_scheduler()
    scheduler.set_timesteps(steps, device=class_tokens.device)
    null = class_tokens[NULL_CLASS].expand(n, -1, -1)
    tokens = torch.cat([null, class_tokens[labels]])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 1, SIZE, SIZE, generator=generator).to(class_tokens.device)
    images = noise * scheduler.init_noise_sigma
    bar = tqdm(scheduler.timesteps, desc=description, unit="step", file=sys.stderr, disable=not progress)
    for timestep in bar:
        both = torch.cat([images, images])
        velocity = model(both, encoder_hidden_states=tokens, timestep=timestep.expand(2 * n)).sample
        without, with_class = velocity.chunk(2)
        guided = without + guidance * (with_class - without)
        images = scheduler.step(guided, timestep, images).prev_sample
    return images.clamp(-1, 1).cpu()
