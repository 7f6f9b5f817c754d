"""What a family of pipelines must tell, and what all of them share."""

import math
from typing import Any

import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

Text = dict[str, Tensor]
"""Of a batch: `tokens` [n, M, E]; with some families `pooled` [n, P], or `mask` [n, M], 1 where a token
counts. A model of classes has `labels` [n] alone."""


class Family:
    """How a pipeline's transformer is called with latents, text and a noise level.

    Args:
        config: of the transformer.
        index: the pipeline's `model_index.json`.

    Attributes:
        on_pixels: whether the pipeline has no VAE: its latents are folded pixels.
        guided: whether the pipeline samples with classifier-free guidance: training drops captions for it.
        flow: whether it is a flow; a diffusion with betas otherwise, whose schedule the pipeline has.
        by_class: whether it draws classes: its text is `labels`.
    """

    flow, by_class = True, False
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_tokens = 512
    """What the pipeline pads or cuts text to."""
    default_side = 1024
    """Of the images in pixels."""
    latent_factor = 8
    """Pixels of a side for each of a latent's, where there is no VAE to tell."""
    patch = 2
    """Side of a token in latents."""
    guided = True

    def __init__(self, config, index: dict[str, Any]):
        self.config = config
        self.on_pixels = index["vae"][0] is None

    @property
    def latent_channels(self) -> int:
        """C of the latents [n, C, h, w]."""
        return self.config.in_channels

    @property
    def text_width(self) -> int:
        """E of the text."""
        return self.config.joint_attention_dim

    def tokens(self, latents: Tensor) -> int:
        """How many tokens the image or video has."""
        *frames, height, width = latents.shape[2:]
        return math.prod(frames) * (height // self.patch) * (width // self.patch)

    def encode(self, pipe: DiffusionPipeline, captions: list[str], length: int) -> Text:
        """Return captions as the pipeline's own encoders give them, in `length` tokens each."""
        raise NotImplementedError

    def predict(self, model: nn.Module, noisy: Tensor, level: Tensor, text: Text, guidance: float) -> Tensor:
        """Return what a model predicts, like `noisy`: of a flow the velocity, noise - clean.

        Args:
            model: the transformer, or a wrapper of it.
            noisy: latents [n, C, h, w], of a video [n, C, F, h, w].
            level: noise levels [n] in [0, 1]; of a diffusion timesteps in parts of 1000.
            text: of the batch.
            guidance: the scale that a distilled model is told.
        """
        raise NotImplementedError

    def arguments(self, text: Text, null: Text, guidance: float) -> dict[str, Any]:
        """What the pipeline is called with, for `text` and, as negative prompt, `null`."""
        raise NotImplementedError

    def sized(self, side: int) -> dict[str, int]:
        """How the pipeline is told the side of the images in pixels."""
        return {"height": side, "width": side}

    # Pixels and latents.

    def latents(self, vae: nn.Module, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] in [-1, 1] -> the mode of the VAE's distribution in the transformer's scale."""
        z = vae.encode(pixels).latent_dist.mode()
        return (z - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def fold(self, x: Tensor) -> Tensor:
        """Latents as they are; pixels [n, c, H, W] folded into the channels of the transformer."""
        if not self.on_pixels:
            return x
        return F.pixel_unshuffle(x, math.isqrt(self.latent_channels // x.shape[1]))

    def unpack(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Latents [n, C, h, w] of what the pipeline returns as such."""
        return latents

    def images(self, made: Any) -> Tensor:
        """[n, 3, H, W] in [0, 1] of the pipeline's output; of a video its first frame."""
        return made.images
