"""Noise schedules of training and sampling: the package's models predict velocity, cosine, 1000 timesteps;
other models have theirs in a file beside the weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

DIFFUSION_SCHEDULERS = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
"""Classes whose configs describe a diffusion with betas, as `DDPMScheduler` reads it: not flow matching."""

PREDICTED = {"v_prediction": "v", "epsilon": "noise", "sample": "image"}
"""What a model predicts, by the ``prediction_type`` of its scheduler: its error is the v-MSE, noise-MSE or
image-MSE, the mean squared error of that on held-out images; in JSON ``v_mse`` and so on."""

SAMPLERS = ("dpm++", "ddpm")
"""DPM-Solver++, and the ancestral steps of (I)DDPM."""

TIMESTEPS = 1000
SCHEDULE_FILE = Path("scheduler", "scheduler_config.json")

# What a schedule consists of, in the configs of all of diffusers' schedulers. The rest is how one samples.
_NAMES = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


def noise_schedule() -> DDPMScheduler:
    """Return the schedule that the package's models were trained with."""
    return DDPMScheduler(
        num_train_timesteps=TIMESTEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )


def target_of(schedule: DDPMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return what a model of ``schedule`` should predict, like ``clean`` and ``noise`` [n, ...]."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(clean, noise, timestep)
    return noise if schedule.config.prediction_type == "epsilon" else clean


def sampling_scheduler(
    schedule: DDPMScheduler | None = None, sampler: str = "dpm++", learned_variance: bool = False
) -> DPMSolverMultistepScheduler | DDPMScheduler:
    """Return what samples on a training ``schedule`` (None: ``noise_schedule()``).

    Both start from noise as strong as in training; the predicted image is clipped to [-1, 1] at every step,
    without which guidance drives pixels out of range.

    Args:
        schedule: the noise of the training, and what the model predicts.
        sampler: "dpm++" is DPM-Solver++ of second order; "ddpm" draws every step's noise, and needs more.
        learned_variance: with "ddpm", read each step's variance off the second half of the model's channels;
            else it is that of the true step back, the smaller one of the two that DDPM knows.
    """
    config = (noise_schedule() if schedule is None else schedule).config
    noise = {name: config[name] for name in _NAMES}
    if sampler == "ddpm":
        variance = "learned_range" if learned_variance else "fixed_small"
        # From the last timestep to 0, the authors' spacing: behind 0 no noise is added.
        return DDPMScheduler(**noise, variance_type=variance, timestep_spacing="linspace")
    return DPMSolverMultistepScheduler(
        **noise,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        thresholding=True,
        sample_max_value=1.0,
    )


def latents_scheduler(
    own: Mapping[str, Any], sampler: str, learned_variance: bool = False
) -> DPMSolverMultistepScheduler | DDPMScheduler:
    """Return what samples in a pipeline whose scheduler has the config ``own``: the same for latents, which
    nothing clips. Pipelines of diffusers drop a learned variance.

    Steps are spread evenly, so that each of the timestep regions gets its share of them; diffusers' own
    default spreads 20 over 4 regions as 4, 5, 6 and 5.
    """
    if sampler == "ddpm":
        variance = "learned_range" if learned_variance else "fixed_small"
        how = {"variance_type": variance, "timestep_spacing": "linspace", "clip_sample": False}
        return DDPMScheduler.from_config(own, **how)
    how = {"algorithm_type": "dpmsolver++", "timestep_spacing": "trailing", "variance_type": None}
    return DPMSolverMultistepScheduler.from_config(own, **how)


def read_schedule(folders: Iterable[Path]) -> DDPMScheduler | None:
    """Return the schedule of the first of ``folders`` with a ``scheduler/scheduler_config.json``, else None.

    Raises:
        ValueError: evaluation cannot use it; the text names what of it.
    """
    folder = next((one for one in folders if (one / SCHEDULE_FILE).is_file()), None)
    if folder is None:
        return None
    config = DDPMScheduler.load_config(folder, subfolder=SCHEDULE_FILE.parent.name)
    schedule = DDPMScheduler.from_config(config)
    for name, value, usable in (
        ("_class_name", config.get("_class_name"), DIFFUSION_SCHEDULERS),
        ("prediction_type", schedule.config.prediction_type, PREDICTED),
        ("num_train_timesteps", schedule.config.num_train_timesteps, (TIMESTEPS,)),
    ):
        if value not in usable:
            wanted = ", ".join(map(str, usable))
            raise ValueError(f"{folder / SCHEDULE_FILE}: {name}={value!r} cannot be evaluated, only {wanted}")
    try:
        sampling_scheduler(schedule)
    except NotImplementedError as error:
        raise ValueError(f"{folder / SCHEDULE_FILE}: DPM-Solver++ cannot sample with it ({error})") from None
    return schedule
