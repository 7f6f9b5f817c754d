"""The data of a run in the space that the model works in, and the loaders over it."""

import math
import re

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, default_collate

from ..data import BUILT_IN, load_dataset
from ..data.images import CaptionedImages
from ..names import located
from ..toy import PRETRAINED
from .arguments import ArgumentError, TrainArguments
from .encoded import EncodedDataset, Encoders, PipelineEncoders
from .inpainting import Holes, holes_of
from .model import Base
from .samples import TrainingSamples, ValidationSamples

VALIDATION_IMAGES = 512
PIXELS_PER_LATENT = 8
"""Of the VAE of PixArt and DiT."""


def origin(arguments: TrainArguments, base: Base) -> dict:
    """Return what `run.json` says of a run's data and model; folders are absolute paths.

    `resolution` is the side of the images in pixels.
    """
    data, model = _data_name(arguments), arguments.pretrained_model_name_or_path
    return {
        "dataset": data if data in BUILT_IN else located(data),
        "resolution": _resolution(arguments, base),
        "base_model": model if model in PRETRAINED else located(model),
    }


def load_splits(
    arguments: TrainArguments, base: Base, accelerator: Accelerator, progress: bool
) -> tuple[Dataset, Dataset]:
    """Load the training and the held-out data: pixels where the model takes those, else latents.

    Raises:
        ArgumentError: the data cannot be read, or does not fit the model.
    """
    name, config = _data_name(arguments), base.model.config
    options = {
        "caption_column": arguments.caption_column,
        "image_column": arguments.image_column,
        "keep_rows": arguments.keep_rows,
        "resolution": _resolution(arguments, base),
    }
    try:
        splits = [load_dataset(name, split=split, **options) for split in ("train", "held_out")]
    except (ValueError, OSError, ModuleNotFoundError) as error:
        named = re.split(r"[ :=]", str(error))[0] in options
        raise ArgumentError(str(error) if named else f"dataset_name={name!r}: {error}") from None
    if base.family is not None:
        return _flow_splits(arguments, base, splits, accelerator, progress)
    by_class = base.objective.by_class
    if by_class and not splits[0].attribute_sizes:
        raise ArgumentError(f"dataset_name={name!r} has no classes, which the model needs")
    channels = base.objective.channels
    if splits[0].channels == channels:
        size, patch = splits[0].size, config.patch_size
        if size % patch:
            raise ArgumentError(f"resolution={size} must be a multiple of the model's patches of {patch}")
        if not by_class and splits[0].text_width != config.caption_channels:
            raise ArgumentError(
                f"dataset_name={name!r} has text of width {splits[0].text_width}, "
                f"the model takes {config.caption_channels}"
            )
        return tuple(splits)
    if arguments.pretrained_model_name_or_path in PRETRAINED:
        raise ArgumentError(
            f"dataset_name={name!r} has images of {_channels(splits[0].channels)}, the built-in model "
            f"{arguments.pretrained_model_name_or_path!r} draws {_channels(channels)}"
            + ("; shapes draws 3" if splits[0].channels == CaptionedImages.channels else "")
        )
    encoders = Encoders(arguments, not by_class, accelerator, progress)
    training = encoders.encode(splits[0], "train", len(splits[0]))
    held_out = encoders.encode(splits[1], "held_out", min(VALIDATION_IMAGES, len(splits[1])))
    found, side, _ = training[0]["latents"].shape
    if found != channels or side % config.patch_size:
        raise ArgumentError(
            f"resolution: latents are [{found}, {side}, {side}], the model takes {channels} "
            f"channels and patches of {config.patch_size}"
        )
    if arguments.task == "inpaint" and arguments.system == "crop":
        training.images = held_out.images = encoders.images
    return training, held_out


def _flow_splits(
    arguments: TrainArguments, base: Base, splits: list[Dataset], accelerator: Accelerator, progress: bool
) -> tuple[Dataset, Dataset]:
    """The same for a flow: pixels and the data set's text where its pipeline has no encoders."""
    name, plain, family = _data_name(arguments), splits[0], base.family
    if not family.on_pixels:
        encoders = PipelineEncoders(arguments, base, accelerator, progress)
        counts = len(plain), min(VALIDATION_IMAGES, len(splits[1]))
        parts = zip(splits, ("train", "held_out"), counts, strict=True)
        return tuple(encoders.encode(*part) for part in parts)
    fold = math.isqrt(family.latent_channels // plain.channels)
    if fold**2 * plain.channels != family.latent_channels:
        raise ArgumentError(
            f"dataset_name={name!r} has images of {_channels(plain.channels)}, which do not fold into the "
            f"model's {family.latent_channels}"
        )
    if plain.size % (fold * family.patch):
        raise ArgumentError(
            f"resolution={plain.size} must be a multiple of the model's patches of {fold * family.patch}"
        )
    if plain.text_width != family.text_width:
        raise ArgumentError(
            f"dataset_name={name!r} has text of width {plain.text_width}, the model takes {family.text_width}"
        )
    return tuple(splits)


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _data_name(arguments: TrainArguments) -> str:
    return arguments.dataset_name or arguments.pretrained_model_name_or_path


def _resolution(arguments: TrainArguments, base: Base) -> int | None:
    """Side of the images in pixels, by default that which the model was made for. None: as built in."""
    if arguments.resolution is not None or _data_name(arguments) in BUILT_IN:
        return arguments.resolution
    config = base.model.config
    if base.family is not None:
        if base.family.on_pixels:
            raise ArgumentError("resolution=None must be given: a model without a VAE does not tell its own")
        return base.family.default_side
    on_pixels = base.objective.channels == CaptionedImages.channels
    return config.sample_size * (1 if on_pixels else PIXELS_PER_LATENT)


def training_loader(arguments: TrainArguments, base: Base, dataset, processes: int, step: int) -> DataLoader:
    """Return the batches of all processes, from the step after `step` to the last one."""
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * processes
    samples = TrainingSamples(
        dataset,
        arguments.seed,
        first=step * per_step,
        count=(arguments.max_train_steps - step) * per_step,
        times=base.objective.times,
        drop=arguments.proportion_empty_prompts if base.family is None or base.family.guided else 0.0,
        holes=_holes(arguments, base, dataset, seed=arguments.seed + 1),
    )
    return _loader(samples, arguments)


def validation_loader(arguments: TrainArguments, base: Base, dataset) -> DataLoader:
    """Return the batches of the held-out images."""
    holes = _holes(arguments, base, dataset, seed=0)
    samples = ValidationSamples(dataset, VALIDATION_IMAGES, times=base.objective.times, holes=holes)
    return _loader(samples, arguments)


def _holes(arguments: TrainArguments, base: Base, dataset, seed: int) -> Holes | None:
    factor = 1
    if isinstance(dataset, EncodedDataset):
        factor = dataset.source.size // dataset[0]["latents"].shape[-1]
    return holes_of(arguments, base.model, dataset, factor, seed)


def _loader(samples, arguments: TrainArguments) -> DataLoader:
    return DataLoader(
        samples,
        batch_size=arguments.train_batch_size,
        num_workers=arguments.dataloader_num_workers,
        collate_fn=_by_timestep,
        # A loader draws a number when it starts. From torch's own stream, a resumed run would leave it there.
        generator=torch.Generator(),
    )


def _by_timestep(samples: list[dict]) -> dict:
    """Sort a batch, so that samples of one timestep region are neighbours: blocks compute them as one."""
    return default_collate(sorted(samples, key=lambda sample: float(sample["timestep"])))
