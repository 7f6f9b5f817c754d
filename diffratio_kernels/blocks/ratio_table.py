"""The kept ratios that a model learns, one per layer and timestep region (paper sections 3.3 and 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from .bins import DEFAULT_BINS, bracketing_bins, snap_to_bins

MODES = ("default", "faithful")


@dataclass(frozen=True)
class TableBins:
    """What a table decided at one moment; a recomputation is given it again.

    Lists [L][R]: clamped ratios, tenths of the smaller and larger bin, the larger one's weight, and nearest
    bins. Tensors [L, R] on the table's device: weight = (inside - lower) / step.
    """

    ratios: list[list[float]]
    small: list[list[int]]
    large: list[list[int]]
    weights: list[list[float]]
    nearest: list[list[int]]
    dead: int
    inside: Tensor
    """The clamped ratios, in tenths by default."""
    slope: Tensor
    """Of `inside` in the ratio: 0 where the faithful mode clamps."""
    lower: Tensor
    step: Tensor


class RatioTable(nn.Module):
    """Parameter `ratios` [L, R] fp32, kept ratios; in training a block runs at the two bins around its own.

    mode "default": the bins next to each other with a <= ratio <= b, b weighted by
    (ratio - a) / (b - a). The derivative on a bin is the one towards the smaller bin, on the smallest bin the
    one towards the larger, and it is never zero for being outside: `project_` brings a ratio back.

    mode "faithful" (the authors' pseudo-code, in its float32): candidates arange(1, .2, -.1); the ratio is
    clamped to [.1, 1] and lies between its nearest and second nearest candidate, whose weights interpolate.
    Quirks kept: the gradient outside of [.1, 1] is zero (`dead` counts those); below .3 the weights
    extrapolate, up to 3 and -2 at .1; on an inner bin float32 noise chooses the other neighbour, so the
    derivative is one-sided on an arbitrary side; halfway between bins the bin at inference is float32
    noise too (.95 -> 1.0, .85 -> .9, .65 -> .6, .55 -> .6, .45 -> .4, .35 -> .3).

    `layers`, `regions`: L and R. `bins`: kept tenths, at least two of 0..10; the faithful mode has its own.
    `start`: every ratio's first value, within the bins. ValueErrors name the argument.

    The host reads the parameter once after each change that autograd's version counter sees, and on a switch
    between `train` and `eval`: what moving averages write through `.data` is noticed then, or by
    `invalidate`."""

    def __init__(
        self,
        layers: int,
        regions: int = 1,
        *,
        bins: tuple[int, ...] = DEFAULT_BINS,
        mode: str = "default",
        start: float = 1.0,
        device=None,
    ):
        super().__init__()
        for name, count in (("layers", layers), ("regions", regions)):
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
                raise ValueError(f"RatioTable: {name}={count!r} must be a positive integer")
        if mode not in MODES:
            raise ValueError(f"RatioTable: mode={mode!r} must be one of {MODES}")
        self.mode, self.bins = mode, checked_bins(bins)
        if mode == "faithful" and self.bins != DEFAULT_BINS:
            raise ValueError(f"RatioTable: bins={bins!r} must be {DEFAULT_BINS} in the faithful mode")
        self.interval = (0.1, 1.0) if mode == "faithful" else (self.bins[-1] / 10, self.bins[0] / 10)
        if not isinstance(start, Real) or not self.interval[0] <= start <= self.interval[1]:
            raise ValueError(f"RatioTable: start={start!r} must be a number in {self.interval}")
        self.start = start
        self.ratios = nn.Parameter(torch.full((layers, regions), start, dtype=torch.float32, device=device))
        self._seen: tuple[tuple, TableBins] | None = None
        self._gathered: tuple[tuple[int, ...], Tensor] | None = None

    def table_bins(self) -> TableBins:
        """The bins of every ratio as the parameter is now: no copy unless it has changed."""
        if self.ratios.is_meta:
            raise ValueError("RatioTable: ratios is on the meta device and has no values")
        if self.ratios.is_inference():  # a copy made in inference_mode; torch counts no changes of it
            return self._decide(self.ratios.to("cpu", copy=True))
        key = (id(self.ratios), self.ratios.data_ptr(), self.ratios._version)
        if self._seen is None or self._seen[0] != key:
            self._seen = key, self._decide(self.ratios.detach().to("cpu", copy=True))
        return self._seen[1]

    @torch.inference_mode(False)  # it may serve a training step next
    def _decide(self, ratios: Tensor) -> TableBins:
        if not ratios.isfinite().all():
            layer, region = (~ratios.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"RatioTable: ratios[{layer}, {region}] is {ratios[layer, region].item()}")
        inside = ratios.clamp(*self.interval)
        faithful = self.mode == "faithful"
        small, large, nearest, lower, step = (_faithful if faithful else _bracketing)(inside, self.bins)
        scaled = inside if faithful else 10 * inside
        slope = (inside == ratios).float() if faithful else torch.full_like(inside, 10)
        tensors = {"inside": scaled, "slope": slope, "lower": lower, "step": step}
        return TableBins(
            ratios=inside.tolist(),
            small=small,
            large=large,
            weights=((scaled - lower) / step).tolist(),
            nearest=nearest,
            dead=int((inside != ratios).sum()) if faithful else 0,
            **{name: t.to(self.ratios.device) for name, t in tensors.items()},
        )

    def pair(
        self, layer: int, regions: list[int], bins: TableBins | None = None
    ) -> tuple[list[int], list[int], Tensor]:
        """Smaller and larger bin (tenths) of each sample's region, and the weight [B] fp32 of the larger.

        The weight is differentiable in `ratios`. `bins`: decisions made before, for a recomputation.
        """
        bins = self.table_bins() if bins is None else bins
        ratios = self.ratios[layer]
        inside = bins.inside[layer] + bins.slope[layer] * (ratios - ratios.detach())  # the value of then
        weights = (inside - bins.lower[layer]) / bins.step[layer]
        small, large = bins.small[layer], bins.large[layer]
        return [small[r] for r in regions], [large[r] for r in regions], self._gather(weights, regions)

    def mean(self, regions: list[int] | None = None) -> Tensor:
        """Differentiable mean of the clamped ratios over layers and a batch's regions (None: the table)."""
        inside = self.ratios.clamp(*self.interval)
        if self.mode == "default":
            inside = inside.detach() + (self.ratios - self.ratios.detach())
        return inside.mean() if regions is None else self._gather(inside.mean(0), regions).mean()

    def _gather(self, values: Tensor, regions: list[int]) -> Tensor:
        """values [R] -> [B]; the index of a mixed batch is copied to the device once for all layers."""
        if len(set(regions)) == 1:
            return values[regions[0]].expand(len(regions))
        if self._gathered is None or self._gathered[0] != tuple(regions):
            with torch.inference_mode(False):
                self._gathered = tuple(regions), torch.tensor(regions, device=values.device)
        return values.index_select(0, self._gathered[1].to(values.device))

    @torch.no_grad()
    def project_(self) -> None:
        """Bring every ratio back into its interval; nothing in the faithful mode, which only clamps."""
        if self.mode == "default":
            self.ratios.clamp_(*self.interval)

    def host(self) -> list[list[float]]:
        """The clamped kept ratios [L][R]."""
        return self.table_bins().ratios

    def nearest(self) -> list[list[int]]:
        """Kept tenths [L][R] at inference: the nearest bin, ties to the larger (faithful: float32 noise)."""
        return self.table_bins().nearest

    def settled(self, mean: float) -> Tensor:
        """Bins [L, R], each one of the two around its ratio, with a mean as near to `mean` as they allow: the
        ratios nearest to their larger bin take it."""
        bins = self.table_bins()
        small, large, weights = (
            torch.tensor(rows, dtype=torch.float64).flatten()
            for rows in (bins.small, bins.large, bins.weights)
        )
        order = weights.argsort(descending=True, stable=True)
        sums = small.sum() + torch.cat([small.new_zeros(1), (large - small)[order].cumsum(0)])
        rises = order[: int((sums - 10 * mean * len(small)).abs().argmin())]
        tenths = small.index_copy(0, rises, large[rises])
        return (tenths / 10).to(self.ratios).view_as(self.ratios)

    def dead(self) -> int:
        """How many ratios have left [.1, 1] in the faithful mode, and with it lost their gradient."""
        return self.table_bins().dead

    def invalidate(self) -> None:
        """Let the host read the parameter again: after a write through `.data`, which nothing counts."""
        self._seen = None

    def train(self, mode: bool = True) -> RatioTable:
        self.invalidate()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        """Moves to another device move the table; casts leave it in fp32, where a step of 1e-4 counts.

        From the meta device, where a ratio has no value (`to_empty`), it comes at its start.
        """
        without_values = self.ratios.is_meta

        def keep_dtype(tensor):
            done = fn(tensor)
            return done if done.dtype == tensor.dtype else tensor.to(done.device)

        super()._apply(keep_dtype, recurse)
        if without_values and not self.ratios.is_meta:
            nn.init.constant_(self.ratios, self.start)
        return self

    def __getstate__(self):
        """A copy has a parameter of its own, whose version counter starts anew."""
        return self.__dict__ | {"_seen": None, "_gathered": None}

    def extra_repr(self) -> str:
        layers, regions = self.ratios.shape
        return f"layers={layers}, regions={regions}, bins={self.bins}, mode={self.mode!r}"


def checked_bins(bins) -> tuple[int, ...]:
    """Kept tenths as a tuple, largest first; ValueError unless they are at least two of 0..10."""
    if not isinstance(bins, (tuple, list)) or not all(
        isinstance(one, Integral) and not isinstance(one, bool) and 0 <= one <= 10 for one in bins
    ):
        raise ValueError(f"RatioTable: bins={bins!r} must be kept tenths, integers in 0..10")
    if len(set(bins)) != len(bins) or len(bins) < 2:
        raise ValueError(f"RatioTable: bins={bins!r} must be two or more different ones")
    return tuple(sorted((int(one) for one in bins), reverse=True))


def _bracketing(inside: Tensor, bins: tuple[int, ...]):
    tenths = 10 * inside  # in float32: exactly m for the float32 next to m / 10
    rows = [[bracketing_bins(one / 10, bins) for one in row] for row in tenths.tolist()]
    small, large = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
    nearest = [[snap_to_bins(one / 10, bins) for one in row] for row in tenths.tolist()]
    lower = torch.tensor(small, dtype=torch.float32)
    return small, large, nearest, lower, torch.tensor(large, dtype=torch.float32) - lower


def _faithful(inside: Tensor, bins: tuple[int, ...]):
    candidates = torch.arange(1, 0.2, -0.1)
    distances = (candidates - inside[..., None]).abs()
    upper, lower = distances.topk(2, largest=False).indices.sort().values.unbind(-1)  # larger first
    tenths = torch.tensor(bins)
    names = (tenths[which].tolist() for which in (lower, upper, distances.argmin(-1)))
    return *names, candidates[lower], candidates[upper] - candidates[lower]
