"""The systems of the tables: what each puts on a model, and what of it is computed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from diffratio import DiffRatioConfig, remove_diffratio
from diffratio.baselines import parse_baseline, remove_baseline
from diffratio.baselines.apply import put
from diffratio.baselines.named import UniformMod
from diffratio.evaluation.flops import KeptTable, TransformerShape
from diffratio.evaluation.flops.baselines import baseline_kept
from diffratio.routing.apply import route_blocks
from diffratio_kernels import kept_tokens


@dataclass(frozen=True)
class System:
    """One row of a table.

    name: in results; of a baseline as `parse_baseline` takes it. method, compression: of the published row,
    method None where there is none. ratios: layers -> the compression of each layer and region, of systems
    that learn it.
    """

    name: str
    method: str | None
    compression: float
    ratios: Callable[[int], list[list[float]]] | None = None

    @property
    def ours(self) -> bool:
        """Whether our kernels do the work."""
        return self.ratios is not None or isinstance(self._baseline, UniformMod)

    @property
    def _baseline(self):
        return None if self.name == "dense" or self.ratios is not None else parse_baseline(self.name)

    def config(self, layers: int) -> DiffRatioConfig:
        """Of routed systems, and of the dense model, whose routing is off."""
        if self.ratios is not None:
            table = self.ratios(layers)
            return DiffRatioConfig(0.0, dict(enumerate(table)), num_regions=len(table[0]))
        own = self._baseline
        return DiffRatioConfig(0.0) if own is None else DiffRatioConfig(own.ratio, rounding=own.rounding)

    def regions(self, layers: int) -> int:
        """How many regions of timesteps differ."""
        own = self._baseline
        return own.regions if self._merges(own) else self.config(layers).num_regions

    @staticmethod
    def _merges(own) -> bool:
        """Whether it is a baseline without routers."""
        return own is not None and not isinstance(own, UniformMod)

    def put(self, model: nn.Module) -> None:
        """Put it on a model."""
        own = self._baseline
        if self._merges(own):
            put(model, own)
        else:
            route_blocks(model, self.config(len(model.transformer_blocks)))

    def take(self, model: nn.Module) -> None:
        """Take it off again."""
        (remove_baseline if self._merges(self._baseline) else remove_diffratio)(model)

    def kept(self, shape: TransformerShape) -> tuple[KeptTable | None, str]:
        """What `transformer_flops` is given: kept tokens, and the method."""
        if self.name == "dense":
            return None, "dense"
        if self.ratios is None:
            return baseline_kept(self.name, shape)
        table = self.config(shape.layers).kept_tenths(shape.layers)
        return [[kept_tokens(tenths, shape.tokens) for tenths in row] for row in table], "mod"


def layerwise(compression: float) -> Callable[[int], list[list[float]]]:
    """A table with this mean: the inner half of the layers skips a tenth more, the outer half one less. The
    paper's own is not published; it tells that the middle is compressed most."""

    def ratios(layers: int) -> list[list[float]]:
        inner = range(layers // 4, layers - layers // 4)
        return [[round(compression + (0.1 if layer in inner else -0.1), 1)] for layer in range(layers)]

    return ratios


def timestepwise(compression: float, regions: int) -> Callable[[int], list[list[float]]]:
    """The same with more in noisy regions than in clean ones, as the paper tells: a tenth at the ends."""

    def ratios(layers: int) -> list[list[float]]:
        end = regions // 4
        shift = [-0.1] * end + [0.0] * (regions - 2 * end) + [0.1] * end
        return [[round(own + one, 1) for one in shift] for [own] in layerwise(compression)(layers)]

    return ratios


def systems(compression: float, regions: int, more: tuple[float, ...] = ()) -> tuple[System, ...]:
    """Every system that exists here, at one compression; ToMe in MLPs at others too."""
    own = f"{compression:g}"
    return (
        System("dense", "dense", 0.0),
        *(System(f"tome:mlp:{part:g}", "tome", part) for part in (*more, compression)),
        System(f"tome:attn:{own}", None, compression),
        System(f"tome:all:{own}", None, compression),
        System(f"atedm:{own}", "atedm", compression),
        System(f"mod:{own}:floor", "mod", compression),
        System(f"mod:{own}", None, compression),
        System("DiffRatio-L", "l", compression, layerwise(compression)),
        System("DiffRatio-LT", "lt", compression, timestepwise(compression, regions)),
    )


TABLE_1 = systems(0.2, 4, more=(0.1,))
TABLE_2 = systems(0.3, 10)
"""On Lazy Diffusion. 100 steps, so ten regions."""
