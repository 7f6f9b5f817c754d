"""A model as evaluation sees it whose pipeline samples: VAE, text encoders, scheduler and transformer."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor, nn

from ..data import CaptionedDataset
from ..diffusion import PREDICTED
from ..diffusion.flow import mixed
from ..diffusion.pipelines import Family, load_pipeline
from ..diffusion.pipelines.family import Text
from ..diffusion.pipelines.sample import AT_ONCE, Drawing, draw
from ..diffusion.prediction import QUARTILES, PredictionError
from ..diffusion.schedules import latents_scheduler, target_of
from ..progress import progress_bar
from ..routing.find import routed_model
from .cost import compare, model_cost

IMAGES = {True: 128, False: 16}
"""Held-out images that predictions are judged on, by whether the model works on pixels."""
ROUNDS = 9
"""Of a latency."""
_LENGTH = 8  # text tokens of a cost without a data set


@dataclass
class PipelineModel:
    """The pipeline around a model; one of the same weights or of the base may take the model's place.

    Args:
        name: of the pipeline, a folder or a hub id.
        family: what knows it.
        model: its transformer, in place and dtype.
        length: text tokens; None is what the pipeline takes.
        guidance: the scale that a distilled model is told.
        revision: of the hub repository.
        schedule: the noise that a diffusion was trained with; None of a flow.
    """

    name: str
    family: Family
    model: nn.Module
    length: int | None = None
    guidance: float = 3.5
    revision: str | None = None
    schedule: DDPMScheduler | None = None

    @cached_property
    def pipe(self) -> DiffusionPipeline:
        """Loaded when it is needed."""
        pipe = load_pipeline(self.name, self.model, self.revision, dtype=self.model.dtype)
        return pipe.to(self.model.device)

    @property
    def kind(self) -> str:
        """What the transformer predicts: velocity, v, noise or image."""
        return "velocity" if self.schedule is None else PREDICTED[self.schedule.config.prediction_type]

    def why_not(self, held_out: CaptionedDataset) -> str | None:
        """Why it makes no images of a data set; None where it does."""
        pairs = [("channels", 3, held_out.channels)]
        if self.family.on_pixels:
            channels = self.family.latent_channels
            fold = round((channels / held_out.channels) ** 0.5)
            pairs = [("folded channels", channels, held_out.channels * fold**2)]
            pairs.append(("text channels", self.family.text_width, held_out.text_width))
        wrong = [f"{has} {what} instead of {wants}" for what, has, wants in pairs if has != wants]
        if wrong:
            return f"the model does not fit {held_out.name!r}: it has {', '.join(wrong)}"
        if self.family.by_class and not held_out.class_names:
            return f"{held_out.name!r} has no classes, which the model draws: a folder of images for each"
        try:
            parts = self.pipe
        except (OSError, ValueError, ImportError) as error:
            return f"the pipeline {self.name!r} cannot be loaded: {str(error).strip().partition(chr(10))[0]}"
        return None if self.family.flow else self._why_not_its_side(held_out.size, parts.vae)

    def _why_not_its_side(self, side: int, vae: nn.Module) -> str | None:
        factor = _factor(vae)
        multiple, own = factor * self.family.patch, factor * self.model.config.sample_size
        if self.family.by_class and side != own:
            return f"resolution={side}: the model draws {own} pixels a side"
        if side % multiple:
            return f"resolution={side} must be a multiple of {multiple}: the VAE's {factor} by the patches"
        return None

    @torch.no_grad()
    def text(self, held_out: CaptionedDataset | None, captions: list[str]) -> Text:
        """Return captions as the model reads them; "" is no text.

        Raises:
            ValueError: a model of classes is given something else.
        """
        if self.family.by_class:
            return {"labels": self._labels(held_out, captions)}
        if not self.family.on_pixels:
            found = self.family.encode(self.pipe, captions, self.length or self.family.text_tokens)
        elif held_out is None:
            found = {"tokens": torch.zeros(len(captions), _LENGTH, self.family.text_width)}
        else:
            null = held_out.null_tokens[None]
            found = {"tokens": torch.cat([held_out.encode([one]) if one else null for one in captions])}
        kinds = {name: self.model.dtype if x.is_floating_point() else x.dtype for name, x in found.items()}
        return {name: x.to(self.model.device, kinds[name]) for name, x in found.items()}

    def _labels(self, held_out: CaptionedDataset, captions: list[str]) -> Tensor:
        places = {name: place for place, name in enumerate(held_out.class_names)}
        places |= {"": self.model.config.num_embeds_ada_norm}
        unknown = next((one for one in captions if one not in places), None)
        if unknown is not None:
            raise ValueError(f"prompt={unknown!r} must be a class: {', '.join(held_out.class_names)}")
        return torch.tensor([places[one] for one in captions], device=self.model.device)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the transformer would denoise, of images [n, C, H, W] in [-1, 1]."""
        pixels = pixels.to(self.model.device, self.model.dtype)
        if self.family.on_pixels:
            return self.family.fold(pixels)
        parts = [self.family.latents(self.pipe.vae, some) for some in pixels.split(AT_ONCE[False])]
        return torch.cat(parts).to(self.model.dtype)

    def samples(
        self, model: nn.Module, held_out: CaptionedDataset, captions: list[str], settings, bar: str | None,
        first: int = 0,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield images [m, C, H, W] in [-1, 1], call by call, that the pipeline makes of captions.

        Args:
            model: takes the place of the pipeline's transformer.
            held_out: the data set.
            captions: n, of which those from `first` on are drawn.
            settings: `SampleSettings`.
            bar: title of the progress bar; None shows none.
            first: number of the first image, a multiple of those of one call.
        """
        self.pipe.transformer, at_once = model, AT_ONCE[self.family.on_pixels]
        if not self.family.flow:
            self.pipe.scheduler = latents_scheduler(self.pipe.scheduler.config, settings.sampler)
        null = self.text(held_out, [""])
        how = Drawing(held_out.size, held_out.channels, settings.steps, settings.seed, settings.guidance)
        count = {"total": len(captions), "initial": first}
        with progress_bar(show=bar is not None, desc=bar, unit="image", leave=False, **count) as shown:
            for start in range(first, len(captions), at_once):
                text = self.text(held_out, captions[start : start + at_once])
                images = draw(self.family, self.pipe, text, null, how, start)
                shown.update(len(images))
                yield images

    @torch.no_grad()
    def prediction_error(self, model: nn.Module, held_out: CaptionedDataset) -> PredictionError:
        """Return the mean squared error of what a model predicts of held-out images, each at a noise level
        in every quarter; levels and noise never change."""
        latents, text = self._judged(held_out)
        generator = torch.Generator().manual_seed(0)
        places, errors = torch.rand(len(latents), generator=generator), []
        for quarter in range(QUARTILES):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            levels, found = ((quarter + places) / QUARTILES).to(latents.device), []
            for rows in torch.arange(len(latents)).split(AT_ONCE[self.family.on_pixels]):
                some = {name: x[rows] for name, x in text.items()}
                noisy, wanted = self._noised(latents[rows], noise[rows], levels[rows])
                predicted = self.family.predict(model, noisy, levels[rows], some, self.guidance)
                found.append((predicted.double() - wanted.double()).square().flatten(1).mean(1))
            errors.append(torch.cat(found).mean().item())
        return PredictionError(sum(errors) / QUARTILES, errors)

    def _noised(self, clean: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents, and what is to be predicted of them."""
        if self.schedule is None:
            return mixed(clean, noise, level), noise - clean
        timestep = (1000 * level).long()
        return self.schedule.add_noise(clean, noise, timestep), target_of(
            self.schedule, clean, noise, timestep
        )

    def _judged(self, held_out: CaptionedDataset) -> tuple[Tensor, Text]:
        """Latents and text of the held-out images, made once."""
        if not hasattr(self, "_kept"):
            rows = range(min(IMAGES[self.family.on_pixels], len(held_out)))
            latents = self.latents(held_out.batch(rows)["pixel_values"])
            self._kept = latents, self.text(held_out, held_out.captions(rows))
        return self._kept

    def cost(
        self, model: nn.Module, held_out: CaptionedDataset | None, batch: int, progress: bool
    ) -> dict[str, dict[str, Any]]:
        """Return `compare` for one forward, the mean over the regions of noise levels, with counted FLOPs; of
        a diffusion `model_cost`."""
        if not self.family.flow:
            side = None if held_out is None else held_out.size // _factor(self.pipe.vae)
            text = 0 if self.family.by_class else self.length or self.family.text_tokens
            how = {"batch": batch, "repeats": ROUNDS, "progress": progress, "layers": True}
            return model_cost(model, text_tokens=text, side=side, **how)
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

        how = {"description": "measuring latency", "progress": progress, "count": True, "layers": True}
        found = compare(model, call, repeats=ROUNDS, **how)
        for one in found.values():
            one["milliseconds"] /= regions
            one["gflop"] /= regions
        return found


def _factor(vae: nn.Module) -> int:
    """Pixels of a side for each of a latent's."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
