"""Small diffusion transformers that one CPU thread can train: diffusers' PixArt with PixArt's own start."""

from .schedules import DIFFUSION_SCHEDULERS, PREDICTED, noise_schedule, sampling_scheduler
from .small_pixart import PRETRAINED, load_pixart, small_pixart

__all__ = [
    "DIFFUSION_SCHEDULERS",
    "PREDICTED",
    "PRETRAINED",
    "load_pixart",
    "noise_schedule",
    "sampling_scheduler",
    "small_pixart",
]
