"""Samples of a flow model: its pipeline makes them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor

from ...progress import progress_bar
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
def sample(
    family: Family, pipe: DiffusionPipeline, text: Text, null: Text, how: Drawing, bar: str | None = None
) -> Tensor:
    """Return images float32 [n, C, side, side] in [-1, 1] on the CPU.

    Args:
        family: what knows the pipeline.
        pipe: with the transformer that is to draw.
        text: of n captions, where the transformer is.
        null: of the empty caption, n = 1.
        how: size, steps, noise and guidance.
        bar: title of the progress bar; None shows none.
    """
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": how.steps, "height": how.side, "width": how.side, "output_type": "pt"}
    if family.on_pixels:
        fold = math.isqrt(family.latent_channels // how.channels)
        height = how.side // fold
        told = height * family.latent_factor
        options |= {"height": told, "width": told, "output_type": "latent"}
    chunks, made = torch.arange(len(text["tokens"])).split(AT_ONCE[family.on_pixels]), []
    for rows in progress_bar(chunks, show=bar is not None, desc=bar, unit="batch", leave=False):
        some = {name: x[rows] for name, x in text.items()}
        none = {name: x.expand(len(rows), *x.shape[1:]) for name, x in null.items()}
        noise = [torch.Generator().manual_seed(how.seed + int(row)) for row in rows]
        out = pipe(**family.arguments(some, none, how.guidance), generator=noise, **options)
        images = family.images(out).float().cpu()
        if family.on_pixels:
            made.append(F.pixel_shuffle(family.unpack(images, height, height), fold).clamp(-1, 1))
        else:
            made.append(2 * images - 1)
    return torch.cat(made)
