"""Samples with all that their routers did on the way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .. import record_routing
from ..evaluation.inpainting import Repainting
from ..evaluation.quality import Judge
from ..evaluation.target import Target
from ..inpainting.hole import Hole
from ..inpainting.masks import token_mask
from ..routing.state import Routing, region


@dataclass(frozen=True)
class Recorded:
    """Samples [n, C, H, W], and at each of T timesteps, from noise to image: what the model was given
    [n, T, C, H, W], which tokens each layer kept (bool) and how it scored them, [n, T, L, N].

    A model that makes the tokens of a hole alone keeps none of the others, and has no scores (NaN) of them:
    ``hole`` [n, N] bool, None where all are made.
    """

    images: Tensor
    noisy: Tensor
    kept: Tensor
    scores: Tensor
    timesteps: list[int]
    hole: Tensor | None = None

    def mean_scores(self, regions: int) -> Tensor:
        """Mean score [L, R] over samples, tokens and timesteps of each region; NaN where there are none."""
        places = torch.tensor([region(t, regions) for t in self.timesteps])
        means = self.scores.nanmean((0, 3))  # [T, L]
        return torch.stack([means[places == r].mean(0) for r in range(regions)], dim=1)


def record_samples(judge: Judge, target: Target, description: str) -> Recorded:
    """Make the judge's samples with a routed model. Of one that repaints a crop, the images are the crops."""
    with record_routing(target.model) as log, _inputs(target.model) as given:
        images = judge.samples(target, description)
    kept, timesteps = kept_maps(log)
    scores = _stacked(log, Routing.scores)
    noisy = torch.stack([torch.cat(given[t])[:, : target.channels] for t in timesteps], dim=1)
    found = Recorded(images, noisy, kept, scores, timesteps)
    return _of_holes(found, judge, target) if target.repaints else found


def _of_holes(found: Recorded, judge: Repainting, target: Target) -> Recorded:
    """What was recorded while holes were painted, on the grid of what the model is shown."""
    patch = target.model.config.patch_size
    frame = judge.system.frame(found.images, judge.mask, patch)
    if judge.system.name != "lazy":  # all tokens of what it is shown are made
        return replace(found, images=frame.pictures)
    mask = token_mask(frame.mask, patch)
    hole = Hole.of(mask)
    kept = _on_grid(found.kept, hole, False)
    return replace(found, kept=kept, scores=_on_grid(found.scores, hole, torch.nan), hole=mask)


def _on_grid(values: Tensor, hole: Hole, outside: float | bool) -> Tensor:
    """[n, T, L, N] of the values of the hole's tokens."""
    places = hole.places[:, None, None].expand_as(values)
    whole = values.new_full((*values.shape[:3], hole.tokens + 1), outside)
    return whole.scatter(-1, places, values)[..., : hole.tokens]


def kept_maps(log: Sequence[Routing]) -> tuple[Tensor, list[int]]:
    """Return ``(kept, timesteps)`` from what ``record_routing`` saw during one call of ``sample``.

    ``kept`` is bool ``[n, len(timesteps), L, N]``, of the half of every batch that has its text. Timesteps
    come in the order of sampling.
    """
    return _stacked(log, Routing.kept), list(dict.fromkeys(int(entry.timestep) for entry in log))


def _stacked(log: Sequence[Routing], read: Callable[[Routing], Tensor]) -> Tensor:
    """What is read of each entry, [2n, N], as [n, T, L, N]."""
    found: dict[int, dict[int, list[Tensor]]] = {}
    for entry in log:
        values = read(entry)
        layers = found.setdefault(int(entry.timestep), {})
        layers.setdefault(entry.layer, []).append(values[len(values) // 2 :].cpu())
    # Images are made in chunks, one after the other.
    columns = [torch.stack([torch.cat(layers[i]) for i in sorted(layers)], 1) for layers in found.values()]
    return torch.stack(columns, dim=1)


@contextmanager
def _inputs(model: nn.Module) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the noisy images of every call inside, by timestep, of the half that has its text."""
    found: dict[int, list[Tensor]] = {}

    def collect(module: nn.Module, args: tuple, kwargs: dict) -> None:
        images, timestep = args[0], int(kwargs["timestep"].flatten()[0])
        found.setdefault(timestep, []).append(images[len(images) // 2 :].float().cpu())

    hook = model.register_forward_pre_hook(collect, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()
