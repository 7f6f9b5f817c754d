"""Samples of a model: its pipeline makes them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor

from .family import Family, Text

AT_ONCE = {True: 128, False: 4}
"""Images of one call, by whether the model works on pixels."""


@dataclass(frozen=True)
class Drawing:
    """How images are made.

    Attributes:
        side: of the images in pixels.
        channels: of a model on pixels.
        steps: of the pipeline's scheduler.
        seed: the noise of image i depends on `seed` + i and the image's size alone.
        guidance: as the pipeline takes it.
    """

    side: int
    channels: int
    steps: int
    seed: int
    guidance: float


@torch.no_grad()
def draw(
    family: Family, pipe: DiffusionPipeline, text: Text, null: Text, how: Drawing, first: int = 0
) -> Tensor:
    """Return images float32 [n, C, side, side] in [-1, 1] on the CPU, made by one call of the pipeline.

    Args:
        family: what knows the pipeline.
        pipe: with the transformer that is to draw.
        text: of n captions, where the transformer is.
        null: of the empty caption, n = 1.
        how: size, steps, noise and guidance.
        first: number of the first image.
    """
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": how.steps, "output_type": "pt"} | family.sized(how.side)
    if family.on_pixels:
        fold = math.isqrt(family.latent_channels // how.channels)
        height = how.side // fold
        options |= family.sized(height * family.latent_factor) | {"output_type": "latent"}
    count = len(next(iter(text.values())))
    null = {name: x.expand(count, *x.shape[1:]) for name, x in null.items()}
    noise = [torch.Generator().manual_seed(how.seed + first + i) for i in range(count)]
    with torch.random.fork_rng():
        torch.manual_seed(how.seed + first)  # DiT's pipeline hands its scheduler no generator
        out = pipe(**family.arguments(text, null, how.guidance), generator=noise, **options)
    images = family.images(out).float().cpu()
    if family.on_pixels:
        return F.pixel_shuffle(family.unpack(images, height, height), fold).clamp(-1, 1)
    return 2 * images - 1
