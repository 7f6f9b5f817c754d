"""At which noise a sample is trained and judged: timesteps of a diffusion, or noise levels of a flow."""

from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..diffusion.flow import draw_level, shifted
from ..diffusion.pipelines import Family


@dataclass(frozen=True)
class Timesteps:
    """Of a diffusion with betas: int64, `count` of them, 0 the cleanest."""

    count: int

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return that of a training sample, a scalar."""
        return torch.randint(self.count, (), generator=generator)

    def spread(self, place: Tensor, count: int) -> Tensor:
        """Return the one at `place` of `count` that are spread evenly."""
        return place * self.count // count

    def region(self, timestep: Tensor, regions: int) -> Tensor:
        """Return the region of each, int64, 0 the cleanest."""
        return (timestep * regions // self.count).clamp(max=regions - 1)


@dataclass(frozen=True)
class NoiseLevels:
    """Of a flow: float32 in [0, 1], 0 clean. They are drawn by `scheme` and then shifted by the pipeline's
    scheduler, as those that it samples with are."""

    family: Family
    scheduler: SchedulerMixin
    scheme: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return that of a training sample, a scalar."""
        level = draw_level(self.scheme, self.mean, self.std, generator)
        return shifted(self.scheduler, level, self.family.tokens(self.family.fold(clean[None])))

    def spread(self, place: Tensor, count: int) -> Tensor:
        """Return the one at `place` of `count` that are spread evenly, without a shift."""
        return (place + 0.5) / count

    def region(self, timestep: Tensor, regions: int) -> Tensor:
        """Return the region of each, int64, 0 the cleanest."""
        return (timestep * regions).long().clamp(max=regions - 1)
