"""A denoising loop with guidance: DPM-Solver++ over a PixArt-Sigma-sized transformer, steps cached or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ... import cache_text
from ..options import Options
from ..peers.caching import first_block_cache, median_change
from ..subject import Candidate, Subject
from .model import Models, check_routed, compiled_blocks, flops, inputs, routed, side

GUIDANCE = 4.5


def subjects(options: Options) -> Iterator[Subject]:
    """batch: images; the model runs on twice as many samples. No loop is captured as a whole: schedulers and
    step caches read values on the host."""
    side(options)  # complains before anything is made
    doubled = replace(options, batch=2 * options.batch)
    yield Subject(
        level="sampling",
        name="PixArt sampling",
        dtype=options.dtype,
        shape=options.shape("layers", "steps"),
        make=partial(inputs, doubled),
        case_bytes=options.weight_bytes(options.layers),
        candidates=tuple(_candidates(doubled)),
    )


def _candidates(options: Options) -> Iterator[Candidate]:
    models, loop = Models(options), Loop(options.steps)
    threshold = Threshold(loop, models.dense)
    twins = {"diffusers dense": (None, models.dense)}
    if options.compile_mode is not None:
        prepare = partial(compiled_blocks, options.compile_mode)
        twins["dense, compiled"] = None, partial(models.twin, "compiled", prepare)
    for name, (kept, model) in twins.items():
        yield _candidate(options, name, kept, partial(_plain, loop, model))
    yield _cached(options, "dense, cached steps", None, loop, models.dense, threshold)
    for kept in options.kept:
        model = partial(models.twin, kept, partial(routed, kept))
        verify = partial(check_routed, model)
        yield _candidate(options, "diffratio", kept, partial(_cached_text, loop, model), verify=verify)
        yield _cached(options, "diffratio, cached steps", kept, loop, model, threshold, verify=verify)
        if options.device == "cuda":
            run = partial(_plain, loop, partial(models.captured, kept))
            own = {"cached_text": False, "allocates": False, "verify": verify}
            yield _candidate(options, "diffratio, CUDA graphs", kept, run, **own)


def _candidate(
    options: Options, name: str, kept: float | None, run, cached_text: bool | None = None, **more
) -> Candidate:
    """Routed models project the text in the first step only, unless said otherwise. Whichever way a routed
    model is run, it is the same one that is verified."""
    cached_text = kept is not None if cached_text is None else cached_text
    work = flops(options, kept) + (options.steps - 1) * flops(options, kept, cached_text)
    more |= {"kept": 1.0 if kept is None else kept, "ours": kept is not None}
    return Candidate(name, run, flops=work, capturable=False, **more)


def _cached(
    options: Options, name: str, kept: float | None, loop: Loop, model, threshold: Threshold, **more
) -> Candidate:
    """FLOPs are those of all steps; `skipped` is the part of steps that ran the first block only."""
    seen = {}

    def run(case: dict[str, Tensor]) -> Tensor:
        with first_block_cache(model(), threshold(case)) as computed:
            out = (_plain if kept is None else _cached_text)(loop, model, case)
        seen["skipped"] = 1 - computed.steps / options.steps
        return out

    return _candidate(options, name, kept, run, seen=seen, **more)


def _plain(loop: Loop, model: Callable[[], nn.Module], case: dict[str, Tensor]) -> Tensor:
    return loop(model(), case)


def _cached_text(loop: Loop, model: Callable[[], nn.Module], case: dict[str, Tensor]) -> Tensor:
    with cache_text(model()):
        return loop(model(), case)


class Threshold:
    """Of First-Block-Cache, for all models: the dense one's median change. Weights are random: the part of
    skipped steps says nothing of a trained model, and stands beside the time."""

    def __init__(self, loop: Loop, dense: Callable[[], nn.Module]):
        self.loop, self.dense, self.found = loop, dense, None

    def __call__(self, case: dict[str, Tensor]) -> float:
        if self.found is None:
            self.found = median_change(self.dense(), partial(_plain, self.loop, self.dense, case))
        return self.found


class Loop:
    """All steps of one batch of images; the model runs on conditional and unconditional samples at once."""

    def __init__(self, steps: int):
        from diffusers import DPMSolverMultistepScheduler

        self.steps = steps
        self.scheduler = DPMSolverMultistepScheduler(num_train_timesteps=1000)

    def __call__(self, model: nn.Module, case: dict[str, Tensor]) -> Tensor:
        """Latents after the last step [images, 4, side, side]."""
        self.scheduler.set_timesteps(self.steps, device=case["hidden_states"].device)
        text, latent = case["encoder_hidden_states"], case["hidden_states"].chunk(2)[0]
        for timestep in self.scheduler.timesteps:
            both = torch.cat([latent, latent])
            out = model(
                both, encoder_hidden_states=text, timestep=timestep.expand(len(both)), return_dict=False
            )[0]
            guided, free = out[:, :4].chunk(2)
            predicted = free + GUIDANCE * (guided - free)
            latent = self.scheduler.step(predicted, timestep, latent, return_dict=False)[0]
        return latent
