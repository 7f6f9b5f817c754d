"""How good the samples of a model are, and how well it predicts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data import CaptionedDataset, load_dataset
from ..diffusion import PREDICTED, sampling
from ..diffusion.pipelines.sample import AT_ONCE
from ..diffusion.prediction import QUARTILES, prediction_error
from ..diffusion.schedules import SAMPLERS
from ..diffusion.variance import predicts_variance
from ..progress import progress_bar
from .classifier import Classifier, attribute_accuracy, classifier
from .frechet import frechet_distance
from .samples import SampleFolder
from .target import Target

REFERENCE = 10_000
"""Held-out images that FID compares samples with, at most."""
SHOWN = 64
"""Samples that a judge gives back."""
_REFERENCE = 2048  # training images whose features the classifier's Frechet distance compares with
_CHUNK = 64  # real images at a time


def images_of(dataset: CaptionedDataset, progress: bool) -> Iterator[Tensor]:
    """Yield the images of a data set part by part, at most ``REFERENCE``."""
    chunks = torch.arange(min(REFERENCE, len(dataset))).split(_CHUNK)
    for rows in progress_bar(chunks, show=progress, desc="real images", unit="batch", leave=False):
        yield dataset.batch(rows)["pixel_values"]


class Score(Protocol):
    """What samples are added to, part by part, and what it then tells."""

    def add(self, images: Tensor, captions: list[str]) -> None: ...

    def figures(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class SampleSettings:
    """What decides the samples of a model: how many, from which noise, in how many guided steps of what."""

    samples: int = 512
    seed: int = 0
    steps: int = 20
    guidance: float = 2.0
    sampler: str = "dpm++"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler!r} must be one of {', '.join(SAMPLERS)}")
        # DDPM's steps go from the noisiest timestep to the cleanest, which are two.
        for name, least in (("samples", 2), ("steps", 2 if self.sampler == "ddpm" else 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @classmethod
    def of(cls, target: Target, **given: Any) -> "SampleSettings":
        """Settings of which those that are None are the target's: of its run's recipe, or the defaults.

        Raises:
            ValueError: a value out of range, or a sampler for a flow, whose pipeline has its own.
        """
        told = {name: value for name, value in given.items() if value is not None}
        if target.is_flow and "sampler" in told:
            raise ValueError("sampler is not for flow models, whose pipelines have their own")
        return cls(**((target.run or {}).get("sampling", {}) | told))

    def variance(self, target: Target) -> str | None:
        """What the noise of "ddpm" follows, in words; None for another sampler."""
        if self.sampler != "ddpm":
            return None
        if target.pipeline is not None:
            return "fixed (a pipeline drops what the model predicts of it)"
        predicted = predicts_variance(target.model, target.channels)
        return "as the model predicts it" if predicted else "fixed (the model predicts none)"


class Judge:
    """Measures models on one data set: what does not depend on the model is computed once.

    Args:
        name_or_path: of the data set.
        settings: how every model is sampled.
        progress: show progress bars on standard error.
        options: of the data set, as for ``load_dataset``.
    """

    def __init__(
        self, name_or_path: str, settings: SampleSettings, *, progress: bool = True, **options: Any
    ) -> None:
        self.name, self.settings, self.progress, self._options = name_or_path, settings, progress, options
        self.held_out, self._train = (
            load_dataset(name_or_path, split=split, **options) for split in ("held_out", "train")
        )
        self.wanted = torch.arange(settings.samples) % len(self.held_out)
        self.classifies = True
        """Whether the data set's attributes are looked for in samples."""

    @classmethod
    def of(cls, target: Target, settings: SampleSettings, progress: bool = True) -> "Judge":
        """The judge of models on the target's data set; a ValueError where that is not known or not there."""
        if target.dataset is None:
            raise ValueError(f"dataset: none is known for {target.name!r}")
        try:
            judge = cls(target.dataset, settings, progress=progress, **target.options)
            judge.classifies = target.pipeline is None or target.pipeline.family.on_pixels
            return judge
        except ModuleNotFoundError as error:
            raise ValueError(f"dataset={target.dataset!r}: {error}") from None

    @cached_property
    def real(self) -> dict[str, Any]:
        """What ``__call__`` tells of samples, for as many held-out images; empty without a classifier."""
        verdict = self._verdict()
        for one in verdict:
            for rows in self.wanted.split(_CHUNK):
                one.add(self.held_out.batch(rows)["pixel_values"], [])
        return _all_figures(verdict)

    def held_out_images(self) -> Iterator[Tensor]:
        """Yield the real images that FID compares with, ``[n, C, H, W]``: nothing trains on them."""
        return images_of(self.held_out, self.progress)

    @cached_property
    def _classifier(self) -> Classifier:
        return classifier(self._train, self.progress)

    @cached_property
    def _real_features(self) -> Tensor:
        reference = self._train.batch(range(min(_REFERENCE, len(self._train))))
        return self._classifier.judge(reference["pixel_values"])[0]

    def why_not(self, target: Target, *, quality: bool = False) -> str | None:
        """Why a model makes no images of the data set (other images, other text, unknown noise) or, with
        ``quality``, cannot be judged on it (too few images); None where it can. A ``resolution`` that was
        asked for need not be the one that the model was made for."""
        if target.repaints:
            return "it repaints a part of a picture: diffratio inpaint, or eval"
        if target.pipeline is not None:
            return target.pipeline.why_not(self.held_out) or target.why_no_schedule
        config, data = target.model.config, self.held_out
        pairs = [("channels", config.in_channels, data.channels)]
        if self._options.get("resolution") is None:
            pairs.append(("pixels a side", config.sample_size, data.size))
        pairs.append(("text channels", config.get("caption_channels"), data.text_width))
        wrong = [f"{has} {what} instead of {wants}" for what, has, wants in pairs if has != wants]
        if wrong:
            return f"the model does not fit {data.name!r}: it has {', '.join(wrong)}"
        if target.why_no_schedule is None and quality and len(data) < QUARTILES:
            images = "1 image" if len(data) == 1 else f"{len(data)} images"
            return f"the held-out part of {self.name!r} has {images}, at least {QUARTILES} are needed"
        return target.why_no_schedule

    def samples(
        self, target: Target, description: str = "sampling", captions: list[str] | None = None
    ) -> Tensor:
        """Return images ``[n, C, H, W]`` that a model makes of ``captions``, None: of those of the held-out
        images.

        Raises:
            ValueError: the data set has no text for one of the captions.
        """
        return torch.cat(list(self._drawn(target, description, captions, first=0)))

    def _drawn(
        self, target: Target, description: str, captions: list[str] | None, first: int
    ) -> Iterator[Tensor]:
        """The samples from number ``first`` on, call by call."""
        bar = description if self.progress else None
        if target.pipeline is not None:
            captions = self.held_out.captions(self.wanted) if captions is None else captions
            how = self.settings, bar, first
            yield from target.pipeline.samples(target.model, self.held_out, captions, *how)
            return
        if captions is None:
            tokens = torch.cat([self.held_out.batch(rows)["tokens"] for rows in self.wanted.split(_CHUNK)])
        else:
            tokens = self.held_out.encode(captions)
        yield from sampling.samples(
            target.model,
            tokens,
            self.held_out.null_tokens,
            seed=self.settings.seed,
            sampler=self.settings.sampler,
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            side=self.held_out.size,
            schedule=target.schedule,
            bar=bar,
            first=first,
        )

    def at_once(self, target: Target) -> int:
        """How many samples are made by one call."""
        return sampling.CHUNK if target.pipeline is None else AT_ONCE[target.pipeline.family.on_pixels]

    def seen(self, images: Tensor, first: int) -> Tensor:
        """What the classifier looks at of samples from number `first` on."""
        return images

    def _kept(self, target: Target, description: str, folder: SampleFolder | None) -> Iterator[Tensor]:
        """All samples, part by part: those of ``folder``, and those that it lacks, which it is given."""
        if folder is None:
            yield from self._drawn(target, description, None, first=0)
            return
        first = 0
        for images in folder.read(len(self.wanted), self.at_once(target)):
            yield images
            first += len(images)
        if first < len(self.wanted):
            for images in self._drawn(target, description, None, first):
                yield folder.write(first, images)
                first += len(images)

    def __call__(
        self,
        target: Target,
        description: str = "sampling",
        scores: Sequence[Score] = (),
        folder: SampleFolder | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the first samples of a model, at most ``SHOWN``, and its ``figures``.

        Samples are judged part by part, and not kept in memory.

        Args:
            target: the model.
            description: of the progress bar.
            scores: what else the samples are judged by; their figures are added.
            folder: keeps the samples; those that it holds are not made again.

        Raises:
            ValueError: it cannot be judged here; ``why_not`` tells why.
        """
        reason = self.why_not(target, quality=True)
        if reason is not None:
            raise ValueError(f"model: {reason}")
        scores, shown, first = [*self._verdict(), *scores], [], 0
        for images in self._kept(target, description, folder):
            captions = self.held_out.captions(self.wanted[first : first + len(images)])
            for score in scores:
                score.add(images, captions)
            if first < SHOWN:
                shown.append(images[: SHOWN - first].clone())  # a view would keep them all
            first += len(images)
        return torch.cat(shown), _all_figures(scores) | self._errors(target)

    def figures(self, target: Target, images: Tensor) -> dict[str, Any]:
        """Return how good a model is: ``frechet``, ``accuracy`` by attribute, ``accuracy_mean``,
        ``accuracy_joint``, ``v_mse``, ``v_mse_by_quartile``.

        The first four are left out where the data set has no attributes to train a classifier on. A model
        that predicts the noise or the image has ``noise_mse`` or ``image_mse`` instead of the last two, one
        of a flow ``velocity_mse``, by quarters of the noise level.

        Args:
            target: what predicts held-out images.
            images: its ``samples``, ``[n, C, H, W]``.
        """
        verdict = self._verdict()
        for one in verdict:
            one.add(images, [])
        return _all_figures(verdict) | self._errors(target)

    def _errors(self, target: Target) -> dict[str, Any]:
        """What a model's predictions of held-out images are off."""
        if target.pipeline is not None:
            pipeline = target.pipeline
            kind, error = pipeline.kind, pipeline.prediction_error(target.model, self.held_out)
        else:
            schedule = target.schedule
            error = prediction_error(target.model, self.held_out, schedule=schedule)
            kind = "v" if schedule is None else PREDICTED[schedule.config.prediction_type]
        return {f"{kind}_mse": error.overall, f"{kind}_mse_by_quartile": error.by_quartile}

    def _verdict(self) -> list[Score]:
        """A new score of attributes, where a classifier knows them."""
        return [_Attributes(self)] if self.classifies and self.held_out.attribute_sizes else []


class _Attributes:
    """Attributes that the classifier sees in samples, and the Frechet distance of its features."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self._features, self._seen = judge, [], []

    def add(self, images: Tensor, captions: list[str]) -> None:
        first = sum(map(len, self._seen))
        features, seen = self._judge._classifier.judge(self._judge.seen(images, first))
        self._features.append(features)
        self._seen.append(seen)

    def figures(self) -> dict[str, Any]:
        held_out, seen = self._judge.held_out, torch.cat(self._seen)
        parts = self._judge.wanted[: len(seen)].split(_CHUNK)
        wanted = torch.cat([held_out.batch(rows)["attributes"] for rows in parts])
        each, joint = attribute_accuracy(seen, wanted)
        return {
            "frechet": frechet_distance(self._judge._real_features, torch.cat(self._features)),
            "accuracy": dict(zip(held_out.attribute_names, each, strict=True)),
            "accuracy_mean": sum(each) / len(each),
            "accuracy_joint": joint,
        }


def _all_figures(scores: Sequence[Score]) -> dict[str, Any]:
    return {name: value for score in scores for name, value in score.figures().items()}
