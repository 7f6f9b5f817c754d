"""Qwen-Image: latents packed 2 x 2 of a VAE of videos, ragged text with a mask."""

import torch.nn.functional as F
from diffusers import QwenImagePipeline

from .family import Family
from .wan import standardised


class QwenImage(Family):
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    )  # fmt: skip

    @property
    def latent_channels(self):
        return self.config.in_channels // 4

    def encode(self, pipe, captions, length):
        device = pipe.text_encoder.device
        tokens, mask = pipe.encode_prompt(captions, device=device, max_sequence_length=length)
        mask = tokens.new_ones(tokens.shape[:2]) if mask is None else mask
        missing = length - tokens.shape[1]
        return {"tokens": F.pad(tokens, (0, 0, 0, missing)), "mask": F.pad(mask.long(), (0, missing))}

    def latents(self, vae, pixels):
        return standardised(vae, pixels)[:, :, 0]

    def predict(self, model, noisy, level, text, guidance):
        n, channels, height, width = noisy.shape
        velocity = model(
            hidden_states=QwenImagePipeline._pack_latents(noisy, n, channels, height, width),
            timestep=level,
            encoder_hidden_states=text["tokens"],
            encoder_hidden_states_mask=text.get("mask"),
            img_shapes=[[(1, height // 2, width // 2)]] * n,
            guidance=noisy.new_full((n,), guidance) if self.config.guidance_embeds else None,
            return_dict=False,
        )[0]
        return self.unpack(velocity, height, width)

    def unpack(self, latents, height, width):
        return QwenImagePipeline._unpack_latents(latents, height, width, 1)[:, :, 0]

    def arguments(self, text, null, guidance):
        own = {"guidance_scale": guidance} if self.config.guidance_embeds else {}
        return own | {
            "prompt_embeds": text["tokens"],
            "prompt_embeds_mask": text.get("mask"),
            "negative_prompt_embeds": null["tokens"],
            "negative_prompt_embeds_mask": null.get("mask"),
            "true_cfg_scale": guidance,
        }
