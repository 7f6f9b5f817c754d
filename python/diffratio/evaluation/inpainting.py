"""How well a run repaints: what it paints into held-out images, what it predicts there, and what it costs."""

import time
from dataclasses import replace
from functools import cached_property, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from .. import disable_diffratio, enable_diffratio
from ..data import load_dataset
from ..data.randomness import mixed_seed
from ..data.twins import MaskedTwins, Twins
from ..diffusion import PREDICTED, sampling_scheduler
from ..diffusion.prediction import QUARTILES
from ..diffusion.variance import predicts_variance
from ..inpainting.compose import pasted
from ..inpainting.masks import draw_masks
from ..inpainting.sampling import Steps, Text, paint
from ..inpainting.systems import Edit, Frame, System
from ..progress import progress_bar
from ..routing.find import routed_model
from ..train.arguments import TrainArguments
from ..train.inpainting import InpaintObjective, holes_of
from ..train.samples import ValidationSamples
from .classifier import attribute_accuracy, classifier
from .cost import compare
from .frechet import frechet_distance
from .networks import Critics
from .quality import images_of
from .target import Target

_CHUNK, _REFERENCE, _ROUNDS = 64, 2048, 9


class Repainting:
    """Judges what models of a run's system paint into the same holes of the same images.

    Of twins the hole is always one of them, and what counts is what is seen in it: `accuracy_joint` is how
    often it matches the other one, P(match).

    Args:
        target: a run with the task inpaint, on pixels.
        settings: `SampleSettings`.
        progress: show progress bars on standard error.
    """

    def __init__(self, target: Target, settings, progress: bool = True):
        self.settings, self.progress = settings, progress
        self.held_out, train = (
            load_dataset(target.dataset, split=split, **target.options) for split in ("held_out", "train")
        )
        own = target.run["arguments"]
        self._twins = isinstance(self.held_out, Twins)
        self.arguments = TrainArguments(**own | {"masks": "object" if self._twins else own["masks"]})
        self.system = target.system
        self._seen = MaskedTwins("train", target.options.get("resolution")) if self._twins else train
        numbers = torch.arange(settings.samples)
        rows = numbers % len(self.held_out)
        self._batch, objects = self.held_out.batch(rows), self.held_out.masks(rows)
        self.captions = self.held_out.captions(rows)
        self.mask = draw_masks(self.arguments.masks, numbers, self.held_out.size, objects=objects)

    def why_not(self, target: Target) -> str | None:
        """Why a model cannot be judged here; None where it can."""
        config, data = target.model.config, self.held_out
        pairs = [("channels", self.system.channels(target.model), data.channels)]
        pairs.append(("text channels", config.get("caption_channels"), data.text_width))
        wrong = [f"{has} {what} instead of {wants}" for what, has, wants in pairs if has != wants]
        if wrong:
            return f"the model does not fit {data.name!r}: it has {', '.join(wrong)}"
        return target.why_no_schedule

    @property
    def given(self) -> Tensor:
        """The images with their holes in grey."""
        return self._batch["pixel_values"].masked_fill(self.mask, 0)

    @torch.no_grad()
    def paint(self, target: Target, description: str, hidden: bool = False) -> Tensor:
        """Return the images [n, C, H, W] with what a model paints into their holes.

        Args:
            target: the model, and its noise.
            description: of the progress bar.
            hidden: whether all that the model is shown is an empty picture: a control.
        """
        model, system, settings = target.model, self.system, self.settings
        learned = predicts_variance(model, system.channels(model))
        parts, made = torch.arange(len(self.mask)).split(_CHUNK), []
        with progress_bar(
            total=len(parts) * settings.steps, show=self.progress, desc=description, unit="step", leave=False
        ) as bar:

            def after_step(number: int, timestep: Tensor, latents: Tensor) -> Tensor:
                bar.update()
                return latents

            for rows in parts:
                picture, mask = self._batch["pixel_values"][rows].to(model.device), self.mask[rows]
                frame = system.frame(picture, mask, model.config.patch_size)
                shown = replace(frame, pictures=torch.zeros_like(frame.pictures)) if hidden else frame
                tokens = self._batch["tokens"][rows].to(model.device, model.dtype)
                text = Text(tokens, self.held_out.null_tokens.to(tokens).expand_as(tokens))
                scheduler = sampling_scheduler(target.schedule, settings.sampler, learned)
                drawn = [
                    torch.Generator().manual_seed(mixed_seed(settings.seed, row)) for row in rows.tolist()
                ]
                how = Steps(scheduler, settings.steps, settings.guidance, generator=drawn)
                edit = system.edit(shown, model.config.patch_size)
                found = paint(system, model, edit, text, how, after_step=after_step).clamp(-1, 1)
                made.append(pasted(frame.restore(found, picture), picture, mask.to(picture.device)).cpu())
        return torch.cat(made)

    def figures(self, images: Tensor) -> dict[str, Any]:
        """Return how good painted images are.

        `hole_error` is the mean square of what differs from the image in its hole, `outside_differing` the
        number of pixels that differ outside of it. `frechet` and `accuracy` are there where a classifier
        knows the data's attributes.
        """
        found = images - self._batch["pixel_values"]
        inside = self.mask.expand_as(found)
        per_image = found.square().masked_fill(~inside, 0).flatten(1).sum(1) / inside.flatten(1).sum(1)
        outside = ((found != 0) & ~inside).any(1).sum().item()
        painted = {"hole_error": per_image.mean().item(), "outside_differing": outside}
        return self._verdict(images) | painted

    @cached_property
    def real(self) -> dict[str, Any]:
        """The verdict on the images themselves; empty without a classifier."""
        return self._verdict(self._batch["pixel_values"])

    @cached_property
    def _classifier(self):
        return classifier(self._seen, self.progress)

    @cached_property
    def _real_features(self) -> Tensor:
        count = min(_REFERENCE, len(self._seen))
        return self._classifier.judge(self._seen.batch(range(count))["pixel_values"])[0]

    def _verdict(self, images: Tensor) -> dict[str, Any]:
        names = self.held_out.attribute_names
        if not names:
            return {}
        features, seen = self._classifier.judge(images * self.mask if self._twins else images)
        each, joint = attribute_accuracy(seen, self._batch["attributes"])
        return {
            "frechet": frechet_distance(self._real_features, features),
            "accuracy": dict(zip(names, each, strict=True)),
            "accuracy_mean": sum(each) / len(each),
            "accuracy_joint": joint,
        }

    @torch.no_grad()
    def errors(self, target: Target) -> dict[str, Any]:
        """Return the mean squared error of what a model predicts in holes of held-out images, as
        `prediction_error` does of whole ones."""
        model = target.model
        objective = InpaintObjective(model, target.schedule, system=self.system)
        holes = holes_of(self.arguments, model, self.held_out, factor=1, seed=0)
        count = min(len(self.mask), len(self.held_out))
        samples = ValidationSamples(self.held_out, count, times=objective.times, holes=holes)
        order = sorted((samples[row] for row in range(count)), key=lambda one: int(one["timestep"]))
        errors, quarters = [], []
        for start in range(0, count, _CHUNK):
            batch = default_collate(order[start : start + _CHUNK])
            placed = {
                name: x.to(model.device, model.dtype if x.is_floating_point() else x.dtype)
                for name, x in batch.items()
            }
            errors.append(objective(model, placed).double().cpu())
            quarters.append(objective.times.region(batch["timestep"], QUARTILES))
        error, quarter = torch.cat(errors), torch.cat(quarters)
        kind = PREDICTED[target.schedule.config.prediction_type]
        by_quartile = [error[quarter == q].mean().item() for q in range(QUARTILES)]
        return {f"{kind}_mse": error.mean().item(), f"{kind}_mse_by_quartile": by_quartile}


def repainting_report(
    target: Target,
    settings,
    critics: Critics,
    *,
    progress: bool = True,
    pictures: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Return `quality`, `real`, and the same figures for `hidden`, the control that sees no picture, and
    `dense`, the weights without routing; or `why_no_quality`. `critics` judge whole pictures."""
    reason = None
    if target.run["latents"]:
        reason = "the run repaints in latents: `diffratio inpaint` shows what it makes"
    if reason is None:
        judge = Repainting(target, settings, progress)
        reason = judge.why_not(target)
    if reason is not None:
        return {"quality": None, "why_no_quality": reason}
    pictures = {} if pictures is None else pictures
    pictures["given"] = judge.given

    def judged(column: str, hidden: bool = False) -> dict[str, Any]:
        pictures[column] = judge.paint(target, f"painting, {column}", hidden)
        found = judge.figures(pictures[column])
        for score in critics.scores(partial(images_of, judge.held_out, progress)):
            score.add(pictures[column], judge.captions)
            found |= score.figures()
        return found if hidden else found | judge.errors(target)

    found = {"system": judge.system.name, "masks": judge.arguments.masks, "real": judge.real}
    found["not_judged"] = critics.networks.missing
    found |= {
        "quality": judged(target.baseline or ("sparse" if target.routed else "model")),
        "hidden": judged("hidden", hidden=True),
    }
    if target.patched:
        disable_diffratio(target.model)
        try:
            found["dense"] = judged("dense")
        finally:
            enable_diffratio(target.model)
    return found


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
