"""The variational bound against two normal densities on a grid, and what its variance is to diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from diffratio.diffusion.variance import VariationalBound

KINDS = ("epsilon", "v_prediction", "sample")
SCHEDULES = ("linear", "squaredcos_cap_v2")
TIMESTEPS = [0, 1, 2, 40, 500, 998]


def exact(kind, beta_schedule):
    """A schedule whose products are in fp64: those of diffusers lose the first timesteps' digits."""
    schedule = DDPMScheduler(
        prediction_type=kind,
        beta_schedule=beta_schedule,
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="linspace",
    )
    schedule.betas = schedule.betas.double()
    schedule.alphas = 1 - schedule.betas
    schedule.alphas_cumprod = schedule.alphas.cumprod(0)
    schedule.one = schedule.one.double()
    schedule.set_timesteps(1000)
    return schedule


def draw(schedule, count=3):
    """Clean and noisy samples, the target and a prediction near it, one sample for each of TIMESTEPS."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, off, fraction = (
        torch.randn(len(TIMESTEPS), 1, 1, count, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    timestep = torch.tensor(TIMESTEPS)
    noisy = schedule.add_noise(clean, noise, timestep)
    targets = {
        "epsilon": noise,
        "v_prediction": schedule.get_velocity(clean, noise, timestep),
        "sample": clean,
    }
    target = targets[schedule.config.prediction_type]
    return clean, noisy, target, target + 0.1 * off, fraction.tanh(), timestep


@pytest.mark.parametrize("beta_schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_divergence_of_two_densities(kind, beta_schedule):
    schedule = exact(kind, beta_schedule)
    clean, noisy, target, predicted, fraction, timestep = draw(schedule)
    bound = VariationalBound(schedule)(predicted - target, fraction, timestep).double()
    signal, alpha, beta = schedule.alphas_cumprod, schedule.alphas, schedule.betas
    for row, t in enumerate(TIMESTEPS):
        found = schedule.step(
            torch.cat([predicted[row : row + 1], 0 * fraction[row : row + 1]], 1), t, noisy[row : row + 1]
        ).pred_original_sample
        if t == 0:  # the density of the clean sample around the predicted one
            low, high = _posterior(schedule, 1).log(), beta[0].log()
            part = (fraction[row] + 1) / 2
            model = torch.distributions.Normal(found[0], (part * high + (1 - part) * low).exp().sqrt())
            expected = -model.log_prob(clean[row])
        else:
            variance = _posterior(schedule, t)
            log_variance = schedule._get_variance(t, fraction[row])
            means = [
                variance
                * (alpha[t].sqrt() / beta[t] * noisy[row] + signal[t - 1].sqrt() / (1 - signal[t - 1]) * x)
                for x in (clean[row], found[0])
            ]
            expected = _divergence(means, variance.sqrt(), (0.5 * log_variance).exp())
        torch.testing.assert_close(bound[row], expected / math.log(2), rtol=2e-4, atol=1e-5)


def _posterior(schedule, t):
    """The variance of x at t - 1, given x at t and the clean sample: of two normal densities' product."""
    after = schedule.alphas[t] / schedule.betas[t]
    before = 1 / (1 - schedule.alphas_cumprod[t - 1])
    return 1 / (after + before)


def _divergence(means, q_scale, p_scale, points=20001):
    """The integral of q log(q / p), numbers [1, 1, n], on a grid."""
    grid = torch.linspace(-10, 10, points, dtype=torch.float64).view(-1, 1, 1, 1) * q_scale + means[0]
    q = torch.distributions.Normal(means[0], q_scale).log_prob(grid)
    p = torch.distributions.Normal(means[1], p_scale).log_prob(grid)
    return torch.trapezoid(q.exp() * (q - p), grid, dim=0)


def test_a_prediction_that_is_right_at_the_least_variance_costs_nothing():
    bound = VariationalBound(DDPMScheduler())
    zero, least = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), -1.0)
    assert torch.equal(bound(zero, least, torch.tensor([1, 999])), torch.zeros(2, 1, 2, 2))
    assert (bound(zero, -least, torch.tensor([1, 40])) > 0).all()
    assert bound(zero, least, torch.tensor([0, 0])).isfinite().all()


def test_the_variance_that_costs_least_is_that_of_the_errors():
    """The posterior's variance plus the mean square of what the mean misses."""
    schedule, t = exact("v_prediction", "squaredcos_cap_v2"), 30
    signal, beta = schedule.alphas_cumprod, schedule.betas
    error = torch.randn(1, 1, 1, 20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    miss = (1 - signal[t]).sqrt() * signal[t - 1].sqrt() * beta[t] / (1 - signal[t]) * error
    least = (_posterior(schedule, t) + miss.square().mean()).log()
    low, high = (schedule._get_variance(t, torch.tensor(end, dtype=torch.float64)) for end in (-1.0, 1.0))
    best = 2 * (least - low) / (high - low) - 1
    slopes = []
    for fraction in (best - 0.1, best, best + 0.1):
        fraction = fraction.clone().requires_grad_()
        bound = VariationalBound(schedule)(error, fraction.expand_as(error), torch.tensor([t])).mean()
        slopes += torch.autograd.grad(bound, fraction)
    assert slopes[0] < 0 < slopes[2] and abs(slopes[1]) < 0.02 * (slopes[2] - slopes[0])


def test_the_mean_gets_no_gradient_and_the_variance_does():
    error, fraction = (torch.randn(3, 2, 4, 4, requires_grad=True) for _ in range(2))
    VariationalBound(DDPMScheduler())(error, fraction, torch.tensor([0, 5, 999])).sum().backward()
    assert error.grad is None and (fraction.grad != 0).all()
