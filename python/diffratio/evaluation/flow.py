"""A flow model as evaluation sees it: its pipeline samples, and its transformer predicts velocities."""

from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..data import CaptionedDataset
from ..diffusion.flow import mixed
from ..diffusion.pipelines import Family, load_pipeline
from ..diffusion.pipelines.family import Text
from ..diffusion.pipelines.sample import AT_ONCE, Drawing, sample
from ..diffusion.prediction import QUARTILES, PredictionError
from ..routing.find import routed_model
from .cost import compare

IMAGES = {True: 128, False: 16}
"""Held-out images that velocities are judged on, by whether the model works on pixels."""
ROUNDS = 9
"""Of a latency."""
_LENGTH = 8  # text tokens of a cost without a data set


@dataclass
class FlowModel:
    """The pipeline around a flow model; one of the same weights or of the base may take the model's place.

    Args:
        name: of the pipeline, a folder or a hub id.
        family: what knows it.
        model: its transformer, in place and dtype.
        length: text tokens; None is what the pipeline takes.
        guidance: the scale that a distilled model is told.
        revision: of the hub repository.
    """

    name: str
    family: Family
    model: nn.Module
    length: int | None = None
    guidance: float = 3.5
    revision: str | None = None

    @cached_property
    def pipe(self) -> DiffusionPipeline:
        """Loaded when it is needed."""
        pipe = load_pipeline(self.name, self.model, self.revision, dtype=self.model.dtype)
        return pipe.to(self.model.device)

    def why_not(self, held_out: CaptionedDataset) -> str | None:
        """Why it makes no images of a data set; None where it does."""
        pairs = [("channels", 3, held_out.channels)]
        if self.family.on_pixels:
            channels = self.family.latent_channels
            fold = round((channels / held_out.channels) ** 0.5)
            pairs = [("folded channels", channels, held_out.channels * fold**2)]
            pairs.append(("text channels", self.family.text_width, held_out.text_width))
        wrong = [f"{has} {what} instead of {wants}" for what, has, wants in pairs if has != wants]
        return f"the model does not fit {held_out.name!r}: it has {', '.join(wrong)}" if wrong else None

    @torch.no_grad()
    def text(self, held_out: CaptionedDataset | None, captions: list[str]) -> Text:
        """Return captions as the model reads them; "" is no text."""
        if not self.family.on_pixels:
            found = self.family.encode(self.pipe, captions, self.length or self.family.text_tokens)
        elif held_out is None:
            found = {"tokens": torch.zeros(len(captions), _LENGTH, self.family.text_width)}
        else:
            null = held_out.null_tokens[None]
            found = {"tokens": torch.cat([held_out.encode([one]) if one else null for one in captions])}
        kinds = {name: self.model.dtype if x.is_floating_point() else x.dtype for name, x in found.items()}
        return {name: x.to(self.model.device, kinds[name]) for name, x in found.items()}

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the transformer would denoise, of images [n, C, H, W] in [-1, 1]."""
        pixels = pixels.to(self.model.device, self.model.dtype)
        if self.family.on_pixels:
            return self.family.fold(pixels)
        parts = [self.family.latents(self.pipe.vae, some) for some in pixels.split(AT_ONCE[False])]
        return torch.cat(parts).to(self.model.dtype)

    def sample(
        self, model: nn.Module, held_out: CaptionedDataset, captions: list[str], settings, bar: str | None
    ) -> Tensor:
        """Return images [n, C, H, W] in [-1, 1] that the pipeline makes of captions with `model`, by
        `SampleSettings`."""
        self.pipe.transformer = model
        text, null = self.text(held_out, captions), self.text(held_out, [""])
        steps, seed, guidance = settings.steps, settings.seed, settings.guidance
        how = Drawing(held_out.size, held_out.channels, steps, seed, guidance)
        return sample(self.family, self.pipe, text, null, how, bar)

    @torch.no_grad()
    def velocity_error(self, model: nn.Module, held_out: CaptionedDataset) -> PredictionError:
        """Return the mean squared error of the velocity on held-out images, each at a noise level in every
        quarter; levels and noise never change."""
        latents, text = self._judged(held_out)
        generator = torch.Generator().manual_seed(0)
        places, errors = torch.rand(len(latents), generator=generator), []
        for quarter in range(QUARTILES):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            levels, found = ((quarter + places) / QUARTILES).to(latents.device), []
            for rows in torch.arange(len(latents)).split(AT_ONCE[self.family.on_pixels]):
                clean, level = latents[rows], levels[rows]
                some = {name: x[rows] for name, x in text.items()}
                noisy = mixed(clean, noise[rows], level)
                predicted = self.family.predict(model, noisy, level, some, self.guidance)
                error = predicted.double() - (noise[rows] - clean).double()
                found.append(error.square().flatten(1).mean(1))
            errors.append(torch.cat(found).mean().item())
        return PredictionError(sum(errors) / QUARTILES, errors)

    def _judged(self, held_out: CaptionedDataset) -> tuple[Tensor, Text]:
        """Latents and text of the held-out images, made once."""
        if not hasattr(self, "_kept"):
            rows = range(min(IMAGES[self.family.on_pixels], len(held_out)))
            latents = self.latents(held_out.batch(rows)["pixel_values"])
            self._kept = latents, self.text(held_out, held_out.captions(rows))
        return self._kept

    def cost(
        self, model: nn.Module, held_out: CaptionedDataset | None, batch: int, progress: bool
    ) -> dict[str, dict[str, float]]:
        """Return `compare` for one forward, the mean over the regions of noise levels, with counted FLOPs."""
        if held_out is None:
            pixels, caption = torch.zeros(1, 3, *[self.family.default_side] * 2), ""
        else:
            pixels, caption = held_out.batch([0])["pixel_values"], held_out.captions([0])[0]
        clean = self.latents(pixels)
        clean = clean.expand(batch, *clean.shape[1:])
        text = {name: x.expand(batch, *x.shape[1:]) for name, x in self.text(held_out, [caption]).items()}
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
        regions = routed_model(model, baseline=True).config.num_regions
        levels = [torch.full((batch,), (r + 0.5) / regions, device=clean.device) for r in range(regions)]
        inputs = [(mixed(clean, noise, level), level) for level in levels]

        def call() -> None:
            for noisy, level in inputs:
                self.family.predict(model, noisy, level, text, self.guidance)

        found = compare(
            model, call, repeats=ROUNDS, description="measuring latency", progress=progress, count=True
        )
        for one in found.values():
            one["milliseconds"] /= regions
            one["gflop"] /= regions
        return found
