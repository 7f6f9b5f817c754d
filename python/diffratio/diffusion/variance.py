"""Learned variances, as in Nichol and Dhariwal, "Improved denoising diffusion probabilistic models"."""

import math

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

WEIGHT = 1e-3
"""Of the whole bound, the sum over all timesteps, in the loss: the authors' lambda."""


def predicts_variance(model: nn.Module, channels: int | None = None) -> bool:
    """Whether the second half of a model's output channels is a variance, of samples of `channels` (None: as
    many as the model takes)."""
    channels = model.config.in_channels if channels is None else channels
    return getattr(model, "out_channels", None) == 2 * channels


class VariationalBound:
    """The term of the variational bound that a timestep contributes, in bits for each number of a sample.

    The model's variance lies, on a logarithmic scale, between that of the true step back (`low`, at 0) and
    beta (`high`, at 1), as diffusers' `variance_type="learned_range"` reads it. The mean is not trained: it
    is that of the noise, velocity or image which the squared error trains. After the first timestep the
    term is the divergence of two normal distributions. At timestep 0 it is the density of the clean sample,
    not the authors' probability of one of 256 levels: latents have no levels. Its variance cannot vanish,
    since `low` is there that of timestep 1.

    Args:
        schedule: the noise of the training, and what the model predicts.
    """

    def __init__(self, schedule: DDPMScheduler):
        beta = schedule.betas.double()
        signal = (1 - beta).cumprod(0)
        before = torch.cat([signal.new_ones(1), signal[:-1]])
        posterior = beta * (1 - before) / (1 - signal)
        posterior[0] = posterior[1]
        # What an error of the prediction is in the predicted clean sample, and that in the mean.
        kind = schedule.config.prediction_type
        noise = (1 - signal).sqrt()
        clean = {"epsilon": noise / signal.sqrt(), "v_prediction": noise, "sample": torch.ones_like(noise)}
        mean = clean[kind] * before.sqrt() * beta / (1 - signal)
        self._tables = torch.stack([posterior.log(), beta.log(), mean]).float()

    def __call__(self, error: Tensor, fraction: Tensor, timestep: Tensor) -> Tensor:
        """Return float32 [B, C, ...].

        Args:
            error: prediction - target [B, C, ...]; gets no gradient.
            fraction: the model's second half [B, C, ...], -1 for `low` and 1 for `high`.
            timestep: int64 [B].
        """
        rows = self._tables.to(error.device)[:, timestep]
        low, high, mean = rows.view(3, -1, *[1] * (error.dim() - 1))
        log_variance = torch.lerp(low, high, (fraction.float() + 1) / 2)
        distance = (mean * error.detach().float()).square() * (-log_variance).exp()
        wider = log_variance - low
        divergence = wider + (-wider).expm1() + distance
        density = math.log(2 * math.pi) + log_variance + distance
        first = (timestep == 0).view_as(low)
        return torch.where(first, density, divergence) / (2 * math.log(2))
