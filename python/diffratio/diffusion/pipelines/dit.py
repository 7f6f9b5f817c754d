"""DiT: plain latents of one size, classes instead of text, a diffusion with betas."""

from .family import Family


class DiT(Family):
    flow, by_class, text_tokens = False, True, 0

    def __init__(self, config, index):
        super().__init__(config, index)
        self.default_side, self.patch = config.sample_size * self.latent_factor, config.patch_size

    def predict(self, model, noisy, level, text, guidance):
        timestep = (1000 * level).long()
        predicted = model(noisy, timestep=timestep, class_labels=text["labels"], return_dict=False)[0]
        return predicted[:, : noisy.shape[1]]

    def arguments(self, text, null, guidance):
        return {"class_labels": text["labels"].tolist(), "guidance_scale": guidance}

    def sized(self, side):
        return {}  # its positions are those of one size
