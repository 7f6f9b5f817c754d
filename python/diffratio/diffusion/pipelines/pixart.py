"""PixArt-alpha and -Sigma: plain latents, text of T5 with a mask, a diffusion with betas."""

import torch

from ..sizes import told_sizes
from .family import Family


class PixArt(Family):
    flow, text_tokens = False, 120

    def __init__(self, config, index):
        super().__init__(config, index)
        self.default_side, self.patch = config.sample_size * self.latent_factor, config.patch_size

    @property
    def text_width(self):
        return self.config.caption_channels

    def encode(self, pipe, captions, length):
        tokens, mask, *_ = pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, device=pipe.text_encoder.device,
            max_sequence_length=length,
        )  # fmt: skip
        return {"tokens": tokens, "mask": mask}

    def predict(self, model, noisy, level, text, guidance):
        sizes = None
        if model.use_additional_conditions:
            sizes = torch.tensor([noisy.shape[-2:]], device=noisy.device) * float(self.latent_factor)
            sizes = sizes.expand(len(noisy), 2).to(noisy.dtype)
        predicted = model(
            noisy,
            encoder_hidden_states=text["tokens"],
            encoder_attention_mask=text.get("mask"),
            timestep=(1000 * level).long(),
            added_cond_kwargs=told_sizes(sizes),
            return_dict=False,
        )[0]
        # A model that learns its variance predicts it in the second half of the channels.
        return predicted[:, : noisy.shape[1]]

    def arguments(self, text, null, guidance):
        return {
            "prompt_embeds": text["tokens"],
            "prompt_attention_mask": text["mask"],
            "negative_prompt": None,
            "negative_prompt_embeds": null["tokens"],
            "negative_prompt_attention_mask": null["mask"],
            "guidance_scale": guidance,
            "use_resolution_binning": False,
        }


class PixArtSigma(PixArt):
    text_tokens = 300
