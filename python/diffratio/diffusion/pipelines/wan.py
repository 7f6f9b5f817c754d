"""Wan 2.1 and 2.2: latents [n, C, F, h, w] of a VAE of videos, an image being one frame."""

import torch

from .family import Family


class Wan(Family):
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    default_side = 480

    def __init__(self, config, index):
        if index.get("boundary_ratio") is not None:
            raise ValueError(
                "its two transformers share the noise levels; pipelines of one alone are trained"
            )
        super().__init__(config, index)
        self.by_token = index.get("expand_timesteps", False)
        self.patch = config.patch_size[1]

    @property
    def text_width(self):
        return self.config.text_dim

    def encode(self, pipe, captions, length):
        tokens, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder.device, do_classifier_free_guidance=False,
            max_sequence_length=length,
        )  # fmt: skip
        return {"tokens": tokens}

    def latents(self, vae, pixels):
        return standardised(vae, pixels)

    def fold(self, x):
        return super().fold(x).unsqueeze(2) if self.on_pixels else x

    def predict(self, model, noisy, level, text, guidance):
        timestep = 1000 * level
        if self.by_token:
            timestep = timestep[:, None].expand(-1, self.tokens(noisy))
        return model(
            hidden_states=noisy, timestep=timestep, encoder_hidden_states=text["tokens"], return_dict=False
        )[0]

    def arguments(self, text, null, guidance):
        embeds = {"prompt_embeds": text["tokens"], "negative_prompt_embeds": null["tokens"]}
        return embeds | {"guidance_scale": guidance, "num_frames": 1}

    def images(self, made):
        return made.frames[:, 0]


def standardised(vae, pixels):
    """[n, 3, H, W] -> latents [n, C, 1, h, w] with the mean and deviation of each channel taken out."""
    z = vae.encode(pixels[:, :, None]).latent_dist.mode()
    mean, std = (torch.tensor(of, device=z.device).view(1, -1, 1, 1, 1)
                 for of in (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
    return (z - mean) / std
