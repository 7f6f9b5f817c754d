"""Z-Image: every sample a ragged sequence of its own, time from noise (0) to image (1), the velocity towards
the image."""

import torch

from .family import Family


class ZImage(Family):
    lora_targets = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    )

    def __init__(self, config, index):
        super().__init__(config, index)
        self.patch = config.all_patch_size[0]

    @property
    def text_width(self):
        return self.config.cap_feat_dim

    def encode(self, pipe, captions, length):
        rows, _ = pipe.encode_prompt(
            list(captions),  # which it overwrites
            device=pipe.text_encoder.device, do_classifier_free_guidance=False, max_sequence_length=length,
        )  # fmt: skip
        tokens = rows[0].new_zeros(len(rows), length, rows[0].shape[1])
        mask = torch.zeros(len(rows), length, dtype=torch.int64, device=tokens.device)
        for sample, row in enumerate(rows):
            tokens[sample, : len(row)], mask[sample, : len(row)] = row, 1
        return {"tokens": tokens, "mask": mask}

    def predict(self, model, noisy, level, text, guidance):
        frames = list(noisy.unsqueeze(2))
        velocity = model(frames, 1 - level, ragged(text), return_dict=False)[0]
        return -torch.stack(velocity).squeeze(2)

    def arguments(self, text, null, guidance):
        embeds = {"prompt_embeds": ragged(text), "negative_prompt_embeds": ragged(null)}
        return embeds | {"guidance_scale": guidance}


def ragged(text):
    """The valid tokens of every sample."""
    if "mask" not in text:
        return list(text["tokens"])
    lengths = text["mask"].sum(1).tolist()
    return [tokens[:length] for tokens, length in zip(text["tokens"], lengths, strict=True)]
