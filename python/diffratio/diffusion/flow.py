"""Flow matching: noise levels s from 0 (clean) to 1 (noise), x_s = (1 - s) clean + s noise, and the velocity
noise - clean, which a model predicts."""

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor


def mixed(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Return x_s of `clean` and `noise` [n, ...] at noise levels `level` [n]."""
    return torch.lerp(clean, noise, level.view(-1, *[1] * (clean.dim() - 1)).to(clean.dtype))


def shifted(scheduler: SchedulerMixin, level: Tensor, tokens: int) -> Tensor:
    """Return noise levels as the scheduler shifts them: by its constant, or by the image's number of tokens.

    Args:
        scheduler: of the pipeline, FlowMatchEuler or another one with flow sigmas.
        level: any shape, in [0, 1].
        tokens: of the image.
    """
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift  # needs transformers

        mu = calculate_shift(tokens, **{name.replace("image_", ""): config[name] for name in names})
        return scheduler.time_shift(mu, 1.0, level)
    shift = config.get("flow_shift", config.get("shift", 1.0))
    return shift * level / (1 + (shift - 1) * level)


def draw_level(scheme: str, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Return one noise level before its shift, a scalar: `scheme` is diffusers' weighting_scheme."""
    return compute_density_for_timestep_sampling(scheme, 1, mean, std, generator=generator)[0]
