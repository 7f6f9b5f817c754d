"""SD3 and SD3.5: plain latents, text of two CLIPs and T5 behind each other, and one vector of the CLIPs."""

from .family import Family
from .flux import pooled


class SD3(Family):
    lora_targets = (
        *Family.lora_targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    text_tokens = 256

    def __init__(self, config, index):
        super().__init__(config, index)
        self.default_side, self.patch = config.sample_size * self.latent_factor, config.patch_size

    def encode(self, pipe, captions, length):
        tokens, _, vector, _ = pipe.encode_prompt(
            captions, None, None, device=pipe.text_encoder.device, do_classifier_free_guidance=False,
            max_sequence_length=length,
        )  # fmt: skip
        return {"tokens": tokens, "pooled": vector}

    def predict(self, model, noisy, level, text, guidance):
        return model(
            hidden_states=noisy,
            timestep=1000 * level,
            encoder_hidden_states=text["tokens"],
            pooled_projections=pooled(text),
            return_dict=False,
        )[0]

    def arguments(self, text, null, guidance):
        return {
            "prompt_embeds": text["tokens"],
            "pooled_prompt_embeds": pooled(text),
            "negative_prompt_embeds": null["tokens"],
            "negative_pooled_prompt_embeds": pooled(null),
            "guidance_scale": guidance,
        }
