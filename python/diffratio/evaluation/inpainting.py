"""How well a run repaints: what it paints into held-out images, what it predicts there, and what it costs."""

import time
from collections.abc import Iterator
from copy import copy
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from ..data.randomness import mixed_seed
from ..data.twins import MaskedTwins, Twins
from ..diffusion import PREDICTED, sampling_scheduler
from ..diffusion.pipelines.sample import AT_ONCE
from ..diffusion.prediction import QUARTILES
from ..inpainting.compose import pasted
from ..inpainting.masks import draw_masks
from ..inpainting.pipeline import DiffRatioInpaintPipeline, Prompts
from ..inpainting.systems import Edit, Frame, System
from ..progress import progress_bar
from ..routing.find import routed_model
from ..train.arguments import TrainArguments
from ..train.inpainting import InpaintObjective
from .cost import compare
from .editor import editor_of
from .pipeline import IMAGES
from .quality import SHOWN, Judge, SampleSettings, Score
from .samples import eight_bit
from .target import Target

_CHUNK, _ROUNDS = 64, 9


class Repainting(Judge):
    """Judges what models of a run's system paint into the same holes of the same images.

    Of twins the hole is always one of them, and what counts is what is seen in it: `accuracy_joint` is how
    often it matches the other one, P(match). Made by `of`, for a run with the task inpaint.
    """

    hidden = False
    """Whether all that a model is shown of a picture is grey: a control."""

    @classmethod
    def of(cls, target: Target, settings: SampleSettings, progress: bool = True) -> "Repainting":
        judge = super().of(target, settings, progress)
        own, judge._twins = target.run["arguments"], isinstance(judge.held_out, Twins)
        judge.arguments = TrainArguments(**own | {"masks": "object" if judge._twins else own["masks"]})
        judge.system, judge.latents = target.system, target.in_latents
        judge.classifies, judge._editor = not judge.latents, None
        if judge._twins:
            judge._train = MaskedTwins("train", target.options.get("resolution"))
        return judge

    def blind(self) -> "Repainting":
        """The same judge of models that are shown nothing."""
        other = copy(self)
        other.hidden = True
        return other

    def why_not(self, target: Target, *, quality: bool = False) -> str | None:
        config, data = target.model.config, self.held_out
        pairs = [("channels", 3 if self.latents else self.system.channels(target.model), data.channels)]
        if not self.latents:
            pairs.append(("text channels", config.get("caption_channels"), data.text_width))
        wrong = [f"{has} {what} instead of {wants}" for what, has, wants in pairs if has != wants]
        if wrong:
            return f"the model does not fit {data.name!r}: it has {', '.join(wrong)}"
        try:
            return target.why_no_schedule or (self._pipe(target) and None)
        except ValueError as error:
            return str(error)

    def at_once(self, target: Target) -> int:
        return AT_ONCE[False] if self.latents else _CHUNK

    def masks(self, numbers: Tensor) -> Tensor:
        """The holes [n, 1, S, S] bool of samples."""
        objects = self.held_out.masks(self.wanted[numbers])
        return draw_masks(self.arguments.masks, numbers, self.held_out.size, objects=objects)

    @property
    def mask(self) -> Tensor:
        """`masks` of all samples."""
        return self.masks(torch.arange(len(self.wanted)))

    @property
    def given(self) -> Tensor:
        """The first images with their holes in grey."""
        rows = torch.arange(min(SHOWN, len(self.wanted)))
        return self.pictures(rows).masked_fill(self.masks(rows), 0)

    def pictures(self, numbers: Tensor) -> Tensor:
        """The images [n, C, S, S] in [-1, 1] of samples."""
        return self.held_out.batch(self.wanted[numbers])["pixel_values"]

    def seen(self, images: Tensor, first: int) -> Tensor:
        return images * self.masks(first + torch.arange(len(images))) if self._twins else images

    def _pipe(self, target: Target) -> DiffRatioInpaintPipeline:
        """The pipeline around a target's model; a VAE and a text encoder are loaded once."""
        if self._editor is None or not self.latents:
            self._editor = editor_of(target, None, sampler=self.settings.sampler)
            self._editor.set_progress_bar_config(disable=True)
        self._editor.transformer = target.model
        return self._editor

    def _drawn(
        self, target: Target, description: str, captions: list[str] | None, first: int
    ) -> Iterator[Tensor]:
        """The images with what a model paints into their holes, from number `first` on, call by call."""
        if captions is not None:
            raise ValueError("prompt: is not for runs that repaint held-out images")
        pipe, how, total = self._pipe(target), self.settings, len(self.wanted)
        given = {"num_inference_steps": how.steps, "guidance_scale": how.guidance, "output_type": "latent"}
        with progress_bar(
            total=total, initial=first, show=self.progress, desc=description, unit="image", leave=False
        ) as bar:
            for numbers in torch.arange(first, total).split(self.at_once(target)):
                pictures, mask = self.pictures(numbers), self.masks(numbers)
                picture = pictures / 2 + 0.5
                made = pipe(
                    self.held_out.captions(self.wanted[numbers]),
                    torch.full_like(picture, 0.5) if self.hidden else picture,
                    mask,
                    generator=[
                        torch.Generator().manual_seed(mixed_seed(how.seed, n)) for n in numbers.tolist()
                    ],
                    max_sequence_length=target.text_tokens,
                    **given,
                ).images
                size = pipe.working_size(picture, None, None)
                frame = pipe.framed(picture, mask, size)
                whole = pipe.composed(frame, made, picture, mask, size).float().cpu()
                bar.update(len(numbers))
                yield pasted(2 * whole - 1, pictures, mask)

    def _verdict(self) -> list[Score]:
        return [*super()._verdict(), _Painted(self)]

    @torch.no_grad()
    def _errors(self, target: Target) -> dict[str, Any]:
        """The mean squared error of what a model predicts in holes of held-out images, as in validation."""
        if self.hidden:
            return {}
        model, pipe, schedule = target.model, self._pipe(target), target.schedule
        objective = InpaintObjective(model, schedule, system=self.system)
        count = min(len(self.wanted), len(self.held_out), IMAGES[False] if self.latents else len(self.wanted))
        places = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        errors, timesteps = [], objective.times.spread(places, count)
        order = timesteps.argsort()  # blocks compute samples of one region as one
        for numbers in order.split(self.at_once(target)):
            picture, mask = self.pictures(numbers) / 2 + 0.5, self.masks(numbers)
            frame = pipe.framed(picture, mask, pipe.working_size(picture, None, None))
            edit, text = pipe.edit(frame), Prompts(self.held_out.captions(self.wanted[numbers]))
            text = pipe.text(text, 1.0, target.text_tokens)
            noise = [torch.Generator().manual_seed(mixed_seed(0, n, 2)) for n in numbers.tolist()]
            noise = torch.stack([torch.randn(edit.clean.shape[1:], generator=one) for one in noise])
            size = torch.tensor([frame.pictures.shape[-2:]]).expand(len(numbers), 2)
            batch = {"pixel_values": edit.clean, "hole": edit.mask, "noise": noise, "tokens": text.tokens}
            batch |= {"timestep": timesteps[numbers], "original_size": size}
            batch |= {} if text.mask is None else {"mask": text.mask}
            kinds = {name: model.dtype if x.is_floating_point() else x.dtype for name, x in batch.items()}
            batch = {name: x.to(model.device, kinds[name]) for name, x in batch.items()}
            errors.append(objective(model, batch).double().cpu())
        error, quarter = torch.cat(errors), objective.times.region(timesteps[order], QUARTILES)
        kind = PREDICTED[schedule.config.prediction_type]
        parts = [error[quarter == q] for q in range(QUARTILES)]
        by_quartile = [part.mean().item() if len(part) else None for part in parts]  # of few images
        return {f"{kind}_mse": error.mean().item(), f"{kind}_mse_by_quartile": by_quartile}


class _Painted:
    """How far painted images are off: `hole_error`, the mean square of what differs from the image in its
    hole, and `outside_differing`, how many pixels differ outside of it."""

    def __init__(self, judge: Repainting) -> None:
        self._judge, self._errors, self._outside = judge, [], 0

    def add(self, images: Tensor, captions: list[str]) -> None:
        numbers = len(self._errors) + torch.arange(len(images))
        pictures, inside = self._judge.pictures(numbers), self._judge.masks(numbers)
        found, inside = images - pictures, inside.expand_as(images)
        differing = (found != 0) & (images != eight_bit(pictures))  # what is kept on disk is rounded
        squares = found.square().masked_fill(~inside, 0).flatten(1).sum(1)
        self._errors += (squares / inside.flatten(1).sum(1)).tolist()
        self._outside += (differing & ~inside).any(1).sum().item()

    def figures(self) -> dict[str, Any]:
        return {"hole_error": fmean(self._errors), "outside_differing": self._outside}


def judge_of(target: Target, settings: SampleSettings, progress: bool = True) -> Judge:
    """The judge for what a target was trained for, on its data set."""
    return (Repainting if target.repaints else Judge).of(target, settings, progress)


class RepaintingStep:
    """One step on random pictures, to be timed.

    Args:
        model: of the system.
        system: what repaints.
        batch: pictures; guidance makes two of one.
        text_tokens: of each.
        mask: of each [1, 1, H, W] bool; None: boxes.
    """

    def __init__(
        self, model: nn.Module, system: System, *, batch: int, text_tokens: int, mask: Tensor | None = None
    ):
        self._model, self._system, config = model, system, model.config
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
        side, place = config.sample_size, {"device": model.device, "dtype": model.dtype}
        pictures = draw(batch, system.channels(model), side, side)
        mask = draw_masks("box", torch.arange(batch), side) if mask is None else mask.expand(batch, 1, -1, -1)
        frame = system.frame(pictures, mask, config.patch_size)
        self._whole = system.edit(Frame(frame.pictures.to(**place), frame.mask), config.patch_size)
        given = {"tokens": draw(batch, text_tokens, config.caption_channels).to(**place)}
        given["original_size"] = torch.full((batch, 2), 8.0 * side, **place)
        objective = InpaintObjective(model, sampling_scheduler(None, "ddpm"), system=system)
        self._condition = objective.condition(given)
        self._edit = self.encode()

    @torch.inference_mode()
    def encode(self) -> Edit:
        """What is computed once for an edit."""
        return self._system.encoded(self._model, self._whole)

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> None:
        """A step of a patched model in the middle of each of its regions."""
        noisy, regions = self._whole.clean, routed_model(model, baseline=True).config.num_regions
        for region in range(regions):
            middle = torch.full((len(noisy),), int((region + 0.5) * 1000 / regions), device=noisy.device)
            self._system.predict(model, self._edit, noisy, timestep=middle, **self._condition)

    def cost(self, model: nn.Module, progress: bool) -> dict[str, dict[str, float]]:
        """Return `compare` of the step, the mean over the regions, with counted FLOPs.

        Args:
            model: that of the constructor, patched.
            progress: show a progress bar.
        """
        regions = routed_model(model, baseline=True).config.num_regions
        options = {"description": "measuring latency", "progress": progress, "count": True, "layers": True}
        found = compare(model, partial(self, model), repeats=_ROUNDS, **options)
        for one in found.values():
            one["milliseconds"] /= regions
            one["gflop"] /= regions
        return found

    def once(self) -> dict[str, float]:
        """Return the `hole`, as part of the tokens, and where there is one the encoder's `milliseconds`: it
        runs once for an edit."""
        found = {"hole": self._edit.where.float().mean().item()}
        if self._edit is not self._whole:
            found["encoder_milliseconds"] = 1e3 * self._seconds()
        return found

    def _seconds(self) -> float:
        found = []
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            self.encode()
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)
            found.append(time.perf_counter() - begun)
        return median(found)
