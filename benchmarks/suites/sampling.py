"""A denoising loop with guidance: DPM-Solver++ over a PixArt-Sigma-sized transformer, steps cached or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from diffratio import cache_text

from ..harness.options import Options
from ..harness.subject import Candidate, Subject
from ..peers.caching import first_block_cache, median_change
from .model import Inputs, Models, Twin, flops, side

GUIDANCE = 4.5


def subjects(options: Options) -> Iterator[Subject]:
    """batch: images; the model runs on twice as many samples. No loop is captured as a whole: schedulers and
    step caches read values on the host."""
    side(options)  # complains before anything is made
    doubled = replace(options, batch=2 * options.batch)
    yield Subject(
        suite="sampling",
        name="PixArt sampling",
        dtype=options.dtype,
        shape=options.shape("layers", "steps"),
        make=Inputs(doubled),
        case_bytes=options.weight_bytes(options.layers),
        candidates=tuple(_candidates(doubled)),
    )


def _candidates(options: Options) -> Iterator[Candidate]:
    models, loop = Models(options), Loop(options.steps)
    dense = Twin(models)
    threshold = Threshold(loop, dense)
    yield _candidate("diffusers dense", Sampling(loop, dense))
    if options.compile_mode is not None:
        yield _candidate("dense, compiled", Sampling(loop, Twin(models, compiled=True)))
    yield _candidate("dense, cached steps", Sampling(loop, dense, threshold))
    for name in options.baselines:
        yield _candidate(name, Sampling(loop, Twin(models, baseline=name)))
    for kept in options.kept:
        twin = Twin(models, kept)
        yield _candidate("diffratio", Sampling(loop, twin))
        yield _candidate("diffratio, cached steps", Sampling(loop, twin, threshold))
        if options.device == "cuda":
            yield _candidate("diffratio, CUDA graphs", Sampling(loop, Twin(models, kept, captured=True)))


def _candidate(name: str, run: Sampling) -> Candidate:
    """FLOPs are those of all steps, skipped ones too."""
    twin, options = run.twin, run.twin.models.options
    first = flops(options, twin.kept, baseline=twin.baseline)
    work = first + (options.steps - 1) * flops(options, twin.kept, run.caches_text, twin.baseline)
    routed = twin.kept is not None
    return Candidate(
        name,
        run,
        twin.verify if routed else None,
        kept=twin.kept if routed else 1.0,
        flops=work,
        ours=routed,
        capturable=False,
        allocates=not twin.captured,
        seen=run.seen,
    )


@dataclass(eq=False)
class Sampling:
    """All steps of the loop by one twin, with First-Block-Cache where there is a threshold.

    Routed models project the text in the first step only; a CUDA graph projects it in each. `seen` has
    `skipped`, the part of steps that ran the first block only.
    """

    loop: Loop
    twin: Twin
    threshold: Threshold | None = None
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def caches_text(self) -> bool:
        return self.twin.kept is not None and not self.twin.captured

    def __call__(self, case: dict[str, Tensor]) -> Tensor:
        model = self.twin.model
        if self.threshold is None:
            return self._steps(model, case)
        with first_block_cache(model, self.threshold(case)) as computed:
            out = self._steps(model, case)
        self.seen["skipped"] = 1 - computed.steps / self.loop.steps
        return out

    def _steps(self, model: nn.Module, case: dict[str, Tensor]) -> Tensor:
        with cache_text(model) if self.caches_text else nullcontext():
            return self.loop(model, case)


class Threshold:
    """Of First-Block-Cache, for all models: the dense one's median change. Weights are random: the part of
    skipped steps says nothing of a trained model, and stands beside the time."""

    def __init__(self, loop: Loop, dense: Twin):
        self.loop, self.dense, self.found = loop, dense, None

    def __call__(self, case: dict[str, Tensor]) -> float:
        if self.found is None:
            model = self.dense.model

            def run() -> None:
                self.loop(model, case)

            self.found = median_change(model, run)
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
