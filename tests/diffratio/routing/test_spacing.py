"""A pipeline whose scheduler gives some timestep regions more steps than others is told so, once."""

import warnings
from types import SimpleNamespace

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffratio import DiffRatioConfig, apply_diffratio, load_diffratio, save_diffratio
from diffratio.routing.spacing import steps_by_region

REGIONS = DiffRatioConfig(compression=0.0, num_regions=4)


def pipeline(tiny, scheduler):
    return SimpleNamespace(transformer=tiny.pixart(), scheduler=scheduler)


def test_diffusers_default_is_not_even(tiny, tmp_path):
    scheduler = DPMSolverMultistepScheduler()
    assert steps_by_region(scheduler, 20, 4) == [4, 5, 6, 5] and scheduler.num_inference_steps is None
    pipe = pipeline(tiny, scheduler)
    with pytest.warns(UserWarning, match=r"20 steps \[4, 5, 6, 5\] fall into the 4 .*trailing") as caught:
        apply_diffratio(pipe, REGIONS)
    [told] = [warning for warning in caught if warning.category is UserWarning]
    assert told.filename == __file__
    save_diffratio(pipe, tmp_path)
    with pytest.warns(UserWarning, match="trailing"):
        load_diffratio(pipeline(tiny, DPMSolverMultistepScheduler()), tmp_path)


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(timestep_spacing="trailing"),
        DDIMScheduler(timestep_spacing="linspace"),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    ],
    ids=lambda one: type(one).__name__,
)
def test_even_ones_and_flows_are_not_told(scheduler, tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_diffratio(pipeline(tiny, scheduler), REGIONS)
        apply_diffratio(pipeline(tiny, DPMSolverMultistepScheduler()), DiffRatioConfig(compression=0.0))
