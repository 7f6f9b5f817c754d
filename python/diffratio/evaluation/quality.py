"""How good the samples of a model are, and how well it predicts."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ..data import load_dataset
from ..diffusion import PREDICTED
from ..diffusion.prediction import QUARTILES, prediction_error
from ..diffusion.sampling import sample
from .classifier import Classifier, attribute_accuracy, classifier
from .frechet import frechet_distance

_REFERENCE = 2048  # real images that samples are compared with


@dataclass(frozen=True)
class SampleSettings:
    """What decides the samples of a model: how many, from which noise, in how many guided steps."""

    samples: int = 512
    seed: int = 0
    steps: int = 20
    guidance: float = 2.0

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


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

    def why_not(self, model: nn.Module) -> str | None:
        """Why ``model`` cannot be judged here (other images, other text); None where it can. A ``resolution``
        that was asked for need not be the one that the model was made for."""
        config, data = model.config, self.held_out
        pairs = [("channels", config.in_channels, data.channels)]
        if self._options.get("resolution") is None:
            pairs.append(("pixels a side", config.sample_size, data.size))
        pairs.append(("text channels", config.get("caption_channels"), data.text_width))
        wrong = [f"{has} {what} instead of {wants}" for what, has, wants in pairs if has != wants]
        return f"the model does not fit {data.name!r}: it has {', '.join(wrong)}" if wrong else None

    @property
    def why_no_quality(self) -> str | None:
        """Why no model can be judged on the data set (too small); None where one can."""
        found = len(self.held_out)
        if found >= QUARTILES:
            return None
        images = "1 image" if found == 1 else f"{found} images"
        return f"the held-out part of {self.name!r} has {images}, at least {QUARTILES} are needed"

    def samples(
        self,
        model: nn.Module,
        description: str = "sampling",
        schedule: DDPMScheduler | None = None,
        captions: list[str] | None = None,
    ) -> Tensor:
        """Return images ``[n, C, H, W]`` that ``model`` makes of ``captions``, None: of those of the held-out
        images. ``schedule`` is what it was trained with; None is that of the package's models.

        Raises:
            ValueError: the data set has no text for one of the captions.
        """
        tokens = self._batch["tokens"] if captions is None else self.held_out.encode(captions)
        return sample(
            model,
            tokens,
            self.held_out.null_tokens,
            seed=self.settings.seed,
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            side=self.held_out.size,
            schedule=schedule,
            bar=description if self.progress else None,
        )

    def __call__(
        self, model: nn.Module, description: str = "sampling", schedule: DDPMScheduler | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the samples of ``model`` and their ``figures``.

        ``schedule`` is what it was trained with; None is that of the package's models.
        """
        images = self.samples(self._fitting(model), description, schedule)
        return images, self.figures(model, images, schedule)

    def figures(
        self, model: nn.Module, images: Tensor, schedule: DDPMScheduler | None = None
    ) -> dict[str, Any]:
        """Return how good a model is: ``frechet``, ``accuracy`` by attribute, ``accuracy_mean``,
        ``accuracy_joint``, ``v_mse``, ``v_mse_by_quartile``.

        The first four are left out where the data set has no attributes to train a classifier on. A model
        that predicts the noise or the image has ``noise_mse`` or ``image_mse`` instead of the last two.

        Args:
            model: what predicts held-out images.
            images: its ``samples``, ``[n, C, H, W]``.
            schedule: what it was trained with; None is that of the package's models.

        Raises:
            ValueError: the model does not fit the data set, or that is too small.
        """
        error = prediction_error(self._fitting(model), self.held_out, schedule=schedule)
        kind = "v" if schedule is None else PREDICTED[schedule.config.prediction_type]
        errors = {f"{kind}_mse": error.overall, f"{kind}_mse_by_quartile": error.by_quartile}
        return self._verdict(images) | errors

    def _fitting(self, model: nn.Module) -> nn.Module:
        """The model; a ValueError where it cannot be judged here."""
        reason = self.why_not(model)
        if reason is not None:
            raise ValueError(f"model: {reason}")
        if self.why_no_quality is not None:
            raise ValueError(f"dataset: {self.why_no_quality}")
        return model

    def _verdict(self, images: Tensor) -> dict[str, Any]:
        if not self.held_out.attribute_sizes:
            return {}
        features, seen = self._classifier.judge(images)
        each, joint = attribute_accuracy(seen, self._batch["attributes"])
        return {
            "frechet": frechet_distance(self._real_features, features),
            "accuracy": dict(zip(self.held_out.attribute_names, each, strict=True)),
            "accuracy_mean": sum(each) / len(each),
            "accuracy_joint": joint,
        }
