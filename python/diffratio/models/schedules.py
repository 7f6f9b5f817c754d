"""The noise schedules of training and sampling: velocity prediction, cosine, 1000 timesteps."""

from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def noise_schedule() -> DDPMScheduler:
    """Return the schedule that training adds noise with."""
    return DDPMScheduler(**_SCHEDULE)


def sampling_scheduler() -> DPMSolverMultistepScheduler:
    """Return DPM-Solver++ (second order) on the training schedule.

    Trailing timesteps start from pure noise, as training does; the predicted image is clipped to [-1, 1] at
    every step, without which guidance drives pixels out of range.
    """
    return DPMSolverMultistepScheduler(
        **_SCHEDULE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        thresholding=True,
        sample_max_value=1.0,
    )
