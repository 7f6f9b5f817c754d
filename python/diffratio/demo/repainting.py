"""The demo's second part: holes of several sizes in drawn pictures, and what a step costs for each."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import DiffRatioConfig, disable_diffratio, enable_diffratio
from ..data import load_dataset
from ..evaluation.editor import editor_of
from ..evaluation.flops.counted import Counting
from ..evaluation.flops.shapes import PAPER_TEXT_TOKENS
from ..evaluation.inpainting import RepaintingStep
from ..evaluation.latency import rotating_times
from ..evaluation.quality import SampleSettings
from ..evaluation.target import load_target
from ..inpainting import LazyPixArt, inpaint, system_of
from ..routing.apply import route_blocks
from ..routing.find import routed_model
from ..toy import TWINS_LAZY

SIDES = (2, 4, 6)
"""Of the square holes, in tokens of 4 pixels; each hides one of two objects, or its middle."""
GRID = 8
"""Tokens a side of the whole picture."""

_BATCH = 8
_LATENT = 64  # a 512 x 512 image in PixArt's latent space: 32 x 32 tokens
_ROUNDS = 3


@dataclass(frozen=True)
class Repainted:
    """Pictures [n, 3, S, S] in [0, 1] before and after, and masks [n, 1, S, S] bool of what is repainted."""

    before: Tensor
    mask: Tensor
    after: Tensor

    @property
    def differing(self) -> Tensor:
        """[n, S, S] bool: the pixels outside of the masks that are not what they were."""
        return (self.before != self.after).any(1) & ~self.mask[:, 0]


def repaint(settings: SampleSettings, device: str, progress: bool) -> tuple[dict[str, Any], Repainted]:
    """Repaint a hole of each of ``SIDES`` in a picture of twins, all as one batch, and measure steps.

    Args:
        settings: the steps, the guidance and the seed of the noise.
        device: cpu or cuda.
        progress: show progress bars on standard error.

    Returns:
        What the report says: ``training_steps`` of the model and its ``mean_kept``; of each of ``edits`` the
        ``prompt``, the ``hole`` as part of the tokens and how many pixels outside of it differ
        (``outside_differing``); ``costs``, of each thing measured what ``step_costs`` returns;
        ``encoder_milliseconds``, of what runs once for an edit. And the pictures.
    """
    target = load_target(TWINS_LAZY, dataset="twins", device=device)
    data, rows = load_dataset("twins", split="held_out"), range(len(SIDES))
    pictures, prompts = data.batch(rows)["pixel_values"] / 2 + 0.5, data.captions(rows)
    quarters = data.masks(rows) > 0
    mask = torch.stack([hole_around(quarter, side) for quarter, side in zip(quarters, SIDES, strict=True)])
    pipe = editor_of(target, str(TWINS_LAZY))
    pipe.set_progress_bar_config(disable=None if progress else True, desc="repainting", leave=False)
    how = {"generator": torch.Generator().manual_seed(settings.seed), "output_type": "pt"}
    steps = settings.steps, settings.guidance
    made = inpaint(pipe, pictures, mask.float(), prompts, "lazy", *steps, **how)
    done = Repainted(pictures, mask, made.cpu())
    counts = done.differing.flatten(1).sum(1).tolist()
    whole = _step(target.model, _BATCH, data.text_tokens, GRID)
    report = {
        "training_steps": _training_steps(),
        "mean_kept": target.mean_kept,
        "edits": [
            {"prompt": prompt, "hole": _part(side), "outside_differing": count}
            for prompt, side, count in zip(prompts, SIDES, counts, strict=True)
        ],
        "costs": {
            f"twins, batch {_BATCH}": step_costs(target.model, _BATCH, data.text_tokens, progress),
            "full-size block": step_costs(_full_size(device), 1, PAPER_TEXT_TOKENS, progress),
        },
        "encoder_milliseconds": whole.once()["encoder_milliseconds"],
    }
    return report, done


def hole_around(quarter: Tensor, side: int) -> Tensor:
    """The mask [1, S, S] bool of a square of ``side`` tokens around a quarter [S, S], in the picture."""
    size, mask = len(quarter), torch.zeros(1, *quarter.shape, dtype=torch.bool)
    length = side * size // GRID
    top, left = (
        min(max(0, round(places.float().mean().item() + 0.5) - length // 2), size - length)
        for places in quarter.nonzero(as_tuple=True)
    )
    mask[:, top : top + length, left : left + length] = True
    return mask


def step_costs(model: nn.Module, batch: int, text_tokens: int, progress: bool) -> list[dict[str, Any]]:
    """Return what a step of the decoder costs, the mean over the timestep regions; times take turns.

    All tokens first, then the holes from the largest on: the ``hole`` as part of the tokens, and ``gflop``
    and ``milliseconds`` of the ``dense`` and of the ``sparse`` decoder.
    """
    regions, passes, prepare, gflop = routed_model(model).config.num_regions, {}, {}, {}
    sides = (GRID, *sorted(SIDES, reverse=True))
    for side in sides:
        step = _step(model, batch, text_tokens, side)
        for way, route in (("dense", disable_diffratio), ("sparse", enable_diffratio)):
            passes[side, way], prepare[side, way] = partial(step, model), partial(route, model)
            route(model)
            with Counting() as counting:
                step(model)
            gflop[side, way] = counting.count.flops / regions / 1e9
    how = {"progress": progress, "prepare": prepare, "description": "measuring holes"}
    times = rotating_times(passes, regions, _ROUNDS, model.device.type, **how)
    enable_diffratio(model)
    found = {side: {"hole": _part(side)} for side in sides}
    for (side, way), time in times.items():
        found[side][way] = {"gflop": gflop[side, way], "milliseconds": time.median * 1e3}
    return list(found.values())


def _step(model: nn.Module, batch: int, text_tokens: int, side: int) -> RepaintingStep:
    """On squares in a corner, of as large a part of the picture as a hole of ``side`` tokens."""
    size = model.config.sample_size
    mask, length = torch.zeros(1, 1, size, size, dtype=torch.bool), side * size // GRID
    mask[..., :length, :length] = True
    return RepaintingStep(model, system_of("lazy"), batch=batch, text_tokens=text_tokens, mask=mask)


def _part(side: int) -> float:
    return side**2 / GRID**2


def _full_size(device: str) -> nn.Module:
    """A decoder of one block of PixArt-XL/2 at 512 x 512 pixels, with random weights, that skips 30 %."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LazyPixArt(num_layers=1, sample_size=_LATENT, caption_channels=32, encoder_layers=1)
    return route_blocks(model.eval().to(device), DiffRatioConfig(compression=0.3))


def _training_steps() -> int:
    """How long the model was trained, by its log."""
    with (TWINS_LAZY / "train_log.jsonl").open() as log:
        first = json.loads(next(log))
    return first["arguments"]["max_train_steps"] + first["steps_before"]
