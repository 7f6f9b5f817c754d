"""The loaders of a run: training samples by number, and a fixed validation set."""

from __future__ import annotations

from torch.utils.data import DataLoader

from ..data import load_dataset
from .arguments import ArgumentError, TrainArguments
from .base import Base
from .samples import TrainingSamples, ValidationSamples

VALIDATION_IMAGES = 512


def load_split(arguments: TrainArguments, base: Base, split: str):
    """The data set of one split, in the space that the model works in."""
    name = arguments.dataset_name or arguments.pretrained_model_name_or_path
    try:
        dataset = load_dataset(name, split=split, resolution=arguments.resolution)
    except ValueError as error:
        raise ArgumentError(f"dataset_name={name!r}: {error}") from None
    channels = base.model.config.in_channels
    if dataset.channels != channels:
        raise ArgumentError(
            f"dataset_name={name!r} has images of {dataset.channels} channels, the model takes {channels}"
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
    workers = arguments.dataloader_num_workers
    return DataLoader(samples, batch_size=arguments.train_batch_size, num_workers=workers)
