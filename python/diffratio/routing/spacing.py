"""How the steps of a pipeline's scheduler fall into the timestep regions of a routed model."""

import copy
import warnings

from .find import routed_model, transformer_of, transformers_of

_STEPS = 5  # of a region, as in the paper: 20 steps, 4 regions


def steps_by_region(scheduler, steps: int, regions: int) -> list[int]:
    """How many of a scheduler's steps fall into each region, the cleanest first; it is left as it is."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.config.num_train_timesteps
    found = [int(min(t * regions // timesteps, regions - 1)) for t in scheduler.timesteps.tolist()]
    return [found.count(region) for region in range(regions)]


def warn_uneven(model_or_pipe) -> None:
    """For the caller of the caller: a pipeline whose scheduler gives some regions more steps than others."""
    scheduler = getattr(model_or_pipe, "scheduler", None)
    regions = routed_model(transformer_of(transformers_of(model_or_pipe)[0])).config.num_regions
    if scheduler is None or regions == 1 or scheduler.config.get("timestep_spacing") != "linspace":
        return
    if scheduler.config.get("use_flow_sigmas"):  # a flow's levels are shifted, in training, too
        return
    steps = _STEPS * regions
    counts = steps_by_region(scheduler, steps, regions)
    if len(set(counts)) > 1:
        warnings.warn(
            f"the pipeline's scheduler spaces timesteps by linspace: of {steps} steps {counts} fall into the "
            f"{regions} timestep regions (the cleanest first), not {_STEPS} into each, for which the ratios "
            "were learned. To mend it: pipe.scheduler = type(pipe.scheduler).from_config("
            'pipe.scheduler.config, timestep_spacing="trailing")',
            stacklevel=3,
        )
