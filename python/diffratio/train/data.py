"""The data of a run in the space that the model works in, and the loaders over it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, default_collate

from ..data import BUILT_IN, load_dataset
from ..data.images import CaptionedImages
from ..models import PRETRAINED
from ..names import located
from .arguments import ArgumentError, TrainArguments
from .base import Base
from .encoded import EncodedDataset, Encoders, encode
from .samples import TrainingSamples, ValidationSamples

VALIDATION_IMAGES = 512
ENCODED = "encoded"
PIXELS_PER_LATENT = 8
"""Of the VAE of PixArt and DiT."""


def data_name(arguments: TrainArguments) -> str:
    return arguments.dataset_name or arguments.pretrained_model_name_or_path


def places(arguments: TrainArguments, config) -> dict:
    """What `run.json` tells for those who come later, from any working directory: the data and the model that
    the run starts from, folders by their absolute paths, and the side of the images."""
    data, model = data_name(arguments), arguments.pretrained_model_name_or_path
    return {
        "dataset": data if data in BUILT_IN else located(data),
        "resolution": resolution_of(arguments, config),
        "base_model": model if model in PRETRAINED else located(model),
    }


def load_splits(arguments: TrainArguments, base: Base, accelerator: Accelerator, progress: bool):
    """The training and the held-out data: pixels where the model takes those, else latents."""
    name = data_name(arguments)
    config = base.model.config
    options = {name: getattr(arguments, name) for name in ("caption_column", "image_column")}
    options["resolution"] = resolution_of(arguments, config)
    try:
        splits = [load_dataset(name, split=split, **options) for split in ("train", "held_out")]
    except (ValueError, OSError, ModuleNotFoundError) as error:
        named = re.split(r"[ :=]", str(error))[0] in options
        raise ArgumentError(str(error) if named else f"dataset_name={name!r}: {error}") from None
    by_class = base.objective.by_class
    if by_class and not splits[0].attribute_sizes:
        raise ArgumentError(f"dataset_name={name!r} has no classes, which the model needs")
    if splits[0].channels == config.in_channels:
        size, patch = splits[0].size, config.patch_size
        if size % patch:
            raise ArgumentError(f"resolution={size} must be a multiple of the model's patches of {patch}")
        if not by_class and splits[0].text_width != config.caption_channels:
            raise ArgumentError(
                f"dataset_name={name!r} has text of width {splits[0].text_width}, "
                f"the model takes {config.caption_channels}"
            )
        return splits
    if arguments.pretrained_model_name_or_path in PRETRAINED:
        raise ArgumentError(
            f"dataset_name={name!r} has images of {_channels(splits[0].channels)}, the built-in model "
            f"{arguments.pretrained_model_name_or_path!r} draws {_channels(config.in_channels)}"
            + ("; shapes draws 3" if splits[0].channels == CaptionedImages.channels else "")
        )
    encoders = Encoders(arguments, not by_class, accelerator.device)
    progress = progress and accelerator.is_local_main_process
    counts = len(splits[0]), min(VALIDATION_IMAGES, len(splits[1]))
    return [
        _check_latents(
            encode(split, encoders, _folder(arguments, part), count, accelerator, progress), config
        )
        for split, part, count in zip(splits, ("train", "held_out"), counts, strict=True)
    ]


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def resolution_of(arguments: TrainArguments, config) -> int | None:
    """Side of the images in pixels: as asked for, else that which the model was made for. None: that of a
    built-in data set."""
    if arguments.resolution is not None or data_name(arguments) in BUILT_IN:
        return arguments.resolution
    return config.sample_size * (1 if config.in_channels == CaptionedImages.channels else PIXELS_PER_LATENT)


def _folder(arguments: TrainArguments, part: str) -> Path:
    return Path(arguments.output_dir) / ENCODED / part


def _check_latents(dataset: EncodedDataset, config) -> EncodedDataset:
    channels, side, _ = dataset[0]["latents"].shape
    if channels != config.in_channels or side % config.patch_size:
        raise ArgumentError(
            f"resolution: latents are [{channels}, {side}, {side}], the model takes {config.in_channels} "
            f"channels and patches of {config.patch_size}"
        )
    return dataset


def training_loader(arguments: TrainArguments, base: Base, dataset, processes: int, step: int) -> DataLoader:
    """Batches for all processes, from the step after `step` to the last one."""
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * processes
    samples = TrainingSamples(
        dataset,
        arguments.seed,
        first=step * per_step,
        count=(arguments.max_train_steps - step) * per_step,
        timesteps=base.scheduler.config.num_train_timesteps,
        drop=arguments.proportion_empty_prompts,
    )
    return _loader(samples, arguments)


def validation_loader(arguments: TrainArguments, base: Base, dataset) -> DataLoader:
    timesteps = base.scheduler.config.num_train_timesteps
    return _loader(ValidationSamples(dataset, VALIDATION_IMAGES, timesteps=timesteps), arguments)


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
    """A batch in which samples of one timestep region stand together: blocks compute them as one."""
    return default_collate(sorted(samples, key=lambda sample: int(sample["timestep"])))
