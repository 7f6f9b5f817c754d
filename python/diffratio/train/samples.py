"""The samples of a run by number: what sample s is follows from (seed, s) alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.randomness import mixed_seed
from .inpainting import Holes
from .objective import clean_image


class TrainingSamples(Dataset):
    """The samples `first .. first + count` of a run, with caption, timestep and noise decided.

    Every epoch is a new order of the data set. Since no state is carried along, neither a resumed run nor
    another number of processes, workers or accumulation steps changes which samples an optimiser step sees.
    `times` draws the timestep, a part `drop` of the captions is left out, and `holes` says what is repainted.
    """

    def __init__(
        self, dataset, seed: int, first: int, count: int, *, times, drop: float, holes: Holes | None = None
    ):
        self.dataset, self.seed, self.first, self.count = dataset, seed, first, count
        self.times, self.drop, self.holes = times, drop, holes
        self._null = dataset.null if hasattr(dataset, "null") else {"tokens": dataset.null_tokens}
        self._epoch, self._order = -1, None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        numbers = [self.first + position for position in positions]
        rows = [self._row(number) for number in numbers]
        items = self.dataset.__getitems__(rows)
        return [self._complete(*one) for one in zip(items, rows, numbers, strict=True)]

    def _row(self, number: int) -> int:
        epoch, place = divmod(number, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, 0))
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator)
        return int(self._order[place])

    def _complete(self, item: dict[str, Tensor], row: int, number: int) -> dict[str, Tensor]:
        item = item if self.holes is None else self.holes(item, row, number)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, number, 1))
        timestep = self.times.draw(clean_image(item), generator)
        dropped = torch.rand((), generator=generator) < self.drop
        noise = torch.randn(clean_image(item).shape, generator=generator)
        item = item | {"timestep": timestep, "noise": noise}
        return item | self._null if dropped and "tokens" in item else item


class ValidationSamples(Dataset):
    """The first `count` held-out images; noise and timesteps never change, timesteps are spread evenly."""

    def __init__(self, dataset, count: int, *, times, holes: Holes | None = None):
        self.dataset, self.count, self.times = dataset, min(count, len(dataset)), times
        self.holes = holes
        self._places = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        item = self.dataset[row]
        item = item if self.holes is None else self.holes(item, row, row)
        generator = torch.Generator().manual_seed(mixed_seed(0, row, 2))
        timestep = self.times.spread(self._places[row], self.count)
        noise = torch.randn(clean_image(item).shape, generator=generator)
        return item | {"row": torch.tensor(row), "timestep": timestep, "noise": noise}
