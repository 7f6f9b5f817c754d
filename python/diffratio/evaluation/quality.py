"""How good the samples of a model are, and how well it predicts."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data import load_dataset
from ..diffusion import PREDICTED
from ..diffusion.prediction import QUARTILES, prediction_error
from ..diffusion.sampling import sample
from ..diffusion.schedules import SAMPLERS
from ..diffusion.variance import predicts_variance
from .classifier import Classifier, attribute_accuracy, classifier
from .frechet import frechet_distance
from .target import Target

_REFERENCE = 2048  # real images that samples are compared with


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
        if target.flow is not None and "sampler" in told:
            raise ValueError("sampler is not for flow models, whose pipelines have their own")
        return cls(**((target.run or {}).get("sampling", {}) | told))

    def variance(self, target: Target) -> str | None:
        """What the noise of "ddpm" follows, in words; None for another sampler."""
        if self.sampler != "ddpm":
            return None
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
            judge.classifies = target.flow is None or target.flow.family.on_pixels
            return judge
        except ModuleNotFoundError as error:
            raise ValueError(f"dataset={target.dataset!r}: {error}") from None

    @cached_property
    def _batch(self) -> dict[str, Tensor]:
        return self.held_out.batch(self.wanted)

    @cached_property
    def reference(self) -> Tensor:
        """Real training images ``[n, C, H, W]`` that samples are compared with."""
        return self._train.batch(range(min(_REFERENCE, len(self._train))))["pixel_values"]

    @cached_property
    def real(self) -> dict[str, Any]:
        """What ``__call__`` tells of samples, for as many held-out images; empty without a classifier."""
        return self._verdict(self._batch["pixel_values"])

    @cached_property
    def _classifier(self) -> Classifier:
        return classifier(self._train, self.progress)

    @cached_property
    def _real_features(self) -> Tensor:
        return self._classifier.judge(self.reference)[0]

    def why_not(self, target: Target, *, quality: bool = False) -> str | None:
        """Why a model makes no images of the data set (other images, other text, unknown noise) or, with
        ``quality``, cannot be judged on it (too few images); None where it can. A ``resolution`` that was
        asked for need not be the one that the model was made for."""
        if target.repaints:
            return "it repaints a part of a picture: diffratio inpaint, or eval"
        if target.flow is not None:
            return target.flow.why_not(self.held_out)
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
        if target.flow is not None:
            captions = self.held_out.captions(self.wanted) if captions is None else captions
            bar = description if self.progress else None
            return target.flow.sample(target.model, self.held_out, captions, self.settings, bar)
        tokens = self._batch["tokens"] if captions is None else self.held_out.encode(captions)
        return sample(
            target.model,
            tokens,
            self.held_out.null_tokens,
            seed=self.settings.seed,
            sampler=self.settings.sampler,
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            side=self.held_out.size,
            schedule=target.schedule,
            bar=description if self.progress else None,
        )

    def __call__(self, target: Target, description: str = "sampling") -> tuple[Tensor, dict[str, Any]]:
        """Return the samples of a model and their ``figures``.

        Raises:
            ValueError: it cannot be judged here; ``why_not`` tells why.
        """
        reason = self.why_not(target, quality=True)
        if reason is not None:
            raise ValueError(f"model: {reason}")
        images = self.samples(target, description)
        return images, self.figures(target, images)

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
        if target.flow is not None:
            kind, error = "velocity", target.flow.velocity_error(target.model, self.held_out)
        else:
            schedule = target.schedule
            error = prediction_error(target.model, self.held_out, schedule=schedule)
            kind = "v" if schedule is None else PREDICTED[schedule.config.prediction_type]
        errors = {f"{kind}_mse": error.overall, f"{kind}_mse_by_quartile": error.by_quartile}
        return self._verdict(images) | errors

    def _verdict(self, images: Tensor) -> dict[str, Any]:
        if not (self.classifies and self.held_out.attribute_sizes):
            return {}
        features, seen = self._classifier.judge(images)
        each, joint = attribute_accuracy(seen, self._batch["attributes"])
        return {
            "frechet": frechet_distance(self._real_features, features),
            "accuracy": dict(zip(self.held_out.attribute_names, each, strict=True)),
            "accuracy_mean": sum(each) / len(each),
            "accuracy_joint": joint,
        }
