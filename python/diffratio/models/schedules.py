"""Noise schedules of training and sampling: the package's models predict velocity, cosine, 1000 timesteps."""

from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

DIFFUSION_SCHEDULERS = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
"""Classes whose configs describe a diffusion with betas, as `DDPMScheduler` reads it: not flow matching."""

PREDICTED = {"v_prediction": "v", "epsilon": "noise", "sample": "image"}
"""What a model predicts, by the ``prediction_type`` of its scheduler: its error is the v-MSE, noise-MSE or
image-MSE, the mean squared error of that on held-out images; in JSON ``v_mse`` and so on."""

# What a schedule consists of, in the configs of all of diffusers' schedulers.
_NAMES = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def noise_schedule() -> DDPMScheduler:
    """Return the schedule that the package's models were trained with."""
    return DDPMScheduler(**_SCHEDULE)


def sampling_scheduler(schedule: DDPMScheduler | None = None) -> DPMSolverMultistepScheduler:
    """Return DPM-Solver++ (second order) on a training ``schedule`` (None: ``noise_schedule()``).

    Trailing timesteps start from pure noise, as training does; the predicted image is clipped to [-1, 1] at
    every step, without which guidance drives pixels out of range.
    """
    config = (noise_schedule() if schedule is None else schedule).config
    return DPMSolverMultistepScheduler(
        **{name: config[name] for name in _NAMES},
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        thresholding=True,
        sample_max_value=1.0,
    )
