"""Judges a run that repaints twins: what it paints, and what a step costs."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.reproduction.plan import SAMPLING
from benchmarks.reproduction.twins import BEGUN, DATASET
from diffratio.data import load_dataset
from diffratio.diffusion.schedules import TIMESTEPS
from diffratio.evaluation.flops.counted import Counting
from diffratio.evaluation.inpainting import Repainting
from diffratio.evaluation.quality import SampleSettings
from diffratio.evaluation.target import Target
from diffratio.inpainting.systems import System, system_of
from diffratio.routing.find import routed_model
from diffratio.toy import PRETRAINED, load_pixart


def judged_repainting(target: Target) -> dict:
    """What a finished model paints into the holes, also where it is shown nothing; what a step costs."""
    judge = Repainting.of(target, SampleSettings(**SAMPLING), progress=False)
    return {
        "quality": judge(target)[1],
        "hidden": judge.blind()(target)[1],
        "real": judge.real,
        "kept_tenths": target.kept_tenths,
        "mean_kept_in_bins": target.mean_kept,
        **repainting_flops(target),
    }


def repainting_flops(target: Target) -> dict:
    """FLOPs of a step, the mean over the regions, and of what is encoded once per edit, over those of a dense
    step on the whole picture."""
    image = system_of("image")
    whole, _ = flops_of_a_step(image, image.from_pixart(load_pixart(PRETRAINED[BEGUN])), 1)
    regions = routed_model(target.model).config.num_regions if target.routed else 1
    step, once = flops_of_a_step(target.system, target.model, regions)
    return {"flops_of_dense": step / whole, "encoder_flops_of_dense": once / whole}


@torch.no_grad()
def flops_of_a_step(system: System, model: nn.Module, regions: int) -> tuple[float, int]:
    """Of one held-out sample, as they run: of a step and of what comes before the first one."""
    data = load_dataset(DATASET, split="held_out")
    batch = data.batch([0])
    frame = system.frame(batch["pixel_values"], data.masks([0])[:, None] > 0, data.patch_size)
    edit = system.edit(frame, data.patch_size)
    with Counting() as before:
        encoded = system.encoded(model, edit)
    with Counting() as steps:
        for region in range(regions):
            timestep = torch.tensor([int((region + 0.5) * TIMESTEPS / regions)])
            given = {"timestep": timestep, "encoder_hidden_states": batch["tokens"]}
            system.predict(model, encoded, edit.clean, **given)
    return steps.count.flops / regions, before.count.flops
