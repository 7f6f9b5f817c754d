"""FLUX.1: latents packed 2 x 2, positions as ids, text of T5 and one vector of CLIP; dev is told its guidance
instead of being guided."""

import torch
from diffusers import FluxPipeline

from .family import Family


class Flux(Family):
    lora_targets = (
        *Family.lora_targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp",
    )  # fmt: skip

    @property
    def latent_channels(self):
        return self.config.in_channels // 4

    @property
    def guided(self):
        return not self.config.guidance_embeds

    def encode(self, pipe, captions, length):
        device = pipe.text_encoder.device
        tokens, pooled, _ = pipe.encode_prompt(captions, device=device, max_sequence_length=length)
        return {"tokens": tokens, "pooled": pooled}

    def predict(self, model, noisy, level, text, guidance):
        n, channels, height, width = noisy.shape
        tokens = text["tokens"]
        place = {"device": noisy.device, "dtype": noisy.dtype}
        told = torch.full((n,), guidance, **place) if self.config.guidance_embeds else None
        velocity = model(
            hidden_states=FluxPipeline._pack_latents(noisy, n, channels, height, width),
            timestep=level,
            guidance=told,
            encoder_hidden_states=tokens,
            pooled_projections=pooled(text),
            txt_ids=torch.zeros(tokens.shape[1], 3, **place),
            img_ids=FluxPipeline._prepare_latent_image_ids(n, height // 2, width // 2, **place),
            return_dict=False,
        )[0]
        return self.unpack(velocity, height, width)

    def unpack(self, latents, height, width):
        return FluxPipeline._unpack_latents(latents, height, width, 1)

    def arguments(self, text, null, guidance):
        given = {"prompt_embeds": text["tokens"], "pooled_prompt_embeds": pooled(text)}
        if not self.guided:
            return given | {"guidance_scale": guidance}
        negative = {"negative_prompt_embeds": null["tokens"], "negative_pooled_prompt_embeds": pooled(null)}
        return given | negative | {"true_cfg_scale": guidance}


def pooled(text):
    """The vector of the whole text; without encoders the mean of its tokens."""
    return text["pooled"] if "pooled" in text else text["tokens"].mean(1)
