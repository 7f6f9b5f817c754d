"""Diffusion without routing: noise schedules, sampling, and the error of what a model predicts."""

from .schedules import DIFFUSION_SCHEDULERS, PREDICTED, noise_schedule, sampling_scheduler

__all__ = ["DIFFUSION_SCHEDULERS", "PREDICTED", "noise_schedule", "sampling_scheduler"]
