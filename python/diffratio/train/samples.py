"""Training samples by number: what sample s of a run is follows from (seed, s) alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


def clean_image(item: dict[str, Tensor]) -> Tensor:
    """Return the latents of an item or batch, else its pixels."""
    return item["latents"] if "latents" in item else item["pixel_values"]


class TrainingSamples(Dataset):
    """The samples `first .. first + count` of a run, with caption, timestep and noise decided.

    Every epoch is a new order of the data set. Since no state is carried along, neither a resumed run nor
    another number of processes, workers or accumulation steps changes which samples an optimiser step sees.
    A part `drop` of the captions is left out.
    """

    def __init__(self, dataset, seed: int, first: int, count: int, *, timesteps: int, drop: float):
        self.dataset, self.seed, self.first, self.count = dataset, seed, first, count
        self.timesteps, self.drop = timesteps, drop
        self._null = dataset.null if hasattr(dataset, "null") else {"tokens": dataset.null_tokens}
        self._epoch, self._order = -1, None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        numbers = [self.first + position for position in positions]
        items = self.dataset.__getitems__([self._row(number) for number in numbers])
        return [self._complete(item, number) for item, number in zip(items, numbers, strict=True)]

    def _row(self, number: int) -> int:
        epoch, place = divmod(number, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(_mixed(self.seed, epoch, 0))
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator)
        return int(self._order[place])

    def _complete(self, item: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, number, 1))
        timestep = torch.randint(self.timesteps, (), generator=generator)
        dropped = torch.rand((), generator=generator) < self.drop
        noise = torch.randn(clean_image(item).shape, generator=generator)
        item = item | {"timestep": timestep, "noise": noise}
        return item | self._null if dropped and "tokens" in item else item


class ValidationSamples(Dataset):
    """The first `count` held-out images; noise and timesteps never change, timesteps are spread evenly."""

    def __init__(self, dataset, count: int, *, timesteps: int):
        self.dataset, self.count, self.timesteps = dataset, min(count, len(dataset)), timesteps
        self._places = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        item = self.dataset[row]
        generator = torch.Generator().manual_seed(_mixed(0, row, 2))
        timestep = self._places[row] * self.timesteps // self.count
        noise = torch.randn(clean_image(item).shape, generator=generator)
        return item | {"row": torch.tensor(row), "timestep": timestep, "noise": noise}


def _mixed(*numbers: int) -> int:
    """32 well mixed bits: torch's CPU generator looks at no more of its seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
