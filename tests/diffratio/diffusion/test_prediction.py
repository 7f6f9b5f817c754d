import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from diffratio.data import load_dataset
from diffratio.diffusion import noise_schedule
from diffratio.diffusion.prediction import prediction_error
from diffratio.diffusion.sampling import sample
from diffratio.toy import PRETRAINED, load_pixart
from tools.toy_pretrain import LOG_FILE, small_pixart


class Oracle(nn.Module):
    """Knows the clean image and so the velocity, times ``1 + error`` in the noisiest quarter."""

    def __init__(self, image, error: float):
        super().__init__()
        self.image, self.error = image, error
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, noisy, encoder_hidden_states, timestep):
        alphas = noise_schedule().alphas_cumprod[timestep].view(-1, 1, 1, 1)
        noise = (noisy - alphas.sqrt() * self.image) / (1 - alphas).sqrt()
        velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * self.image
        factor = 1 + self.error * (timestep >= 750).view(-1, 1, 1, 1)
        return SimpleNamespace(sample=velocity * factor)


def test_a_model_that_predicts_zero_errs_by_the_velocity_itself():
    digits = load_dataset("digits", split="held_out")
    error = prediction_error(small_pixart(digits, 0, layers=1, heads=1), digits)
    alphas = noise_schedule().alphas_cumprod
    # Noise and clean images are independent: E v^2 = alpha + (1 - alpha) E x^2.
    power = digits.batch(range(360))["pixel_values"].square().mean()
    for quartile, found in enumerate(error.by_quartile):
        alpha = alphas[250 * quartile : 250 * (quartile + 1)].mean()
        assert found == pytest.approx((alpha + (1 - alpha) * power).item(), rel=0.05)
    assert error.overall == pytest.approx(sum(error.by_quartile) / 4, rel=1e-6)


def test_the_error_lands_in_its_quartile():
    digits = load_dataset("digits", split="held_out")
    image = digits[0]["pixel_values"]
    same = {"pixel_values": image.expand(8, -1, -1, -1), "tokens": torch.zeros(8, 4, 32)}
    digits.batch = lambda rows: same
    exact = prediction_error(Oracle(image, 0.0), digits, samples=8)
    assert exact.overall == pytest.approx(0, abs=1e-9)
    *clean, noisy = prediction_error(Oracle(image, 0.5), digits, samples=8).by_quartile
    assert max(clean) == pytest.approx(0, abs=1e-9) and noisy > 0.1


class Knowing(nn.Module):
    """Knows the image, and so what a model of ``schedule`` should predict, beside a variance of 7."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, image, schedule):
        super().__init__()
        self.image, self.schedule = image, schedule
        self.config = small_pixart(load_dataset("digits"), 0, layers=1, heads=1).config
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, noisy, encoder_hidden_states, timestep):
        alphas = self.schedule.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        noise = (noisy - alphas.sqrt() * self.image) / (1 - alphas).sqrt()
        image = self.image.expand_as(noisy)
        velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * image
        predicted = {"epsilon": noise, "sample": image, "v_prediction": velocity}
        found = predicted[self.schedule.config.prediction_type]
        return SimpleNamespace(sample=torch.cat([found, torch.full_like(found, 7)], dim=1))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_model_is_judged_and_sampled_by_its_own_schedule(kind):
    digits = load_dataset("digits", split="held_out")
    image, schedule = digits[0]["pixel_values"], DDPMScheduler(prediction_type=kind)
    same = {"pixel_values": image.expand(8, -1, -1, -1), "tokens": torch.zeros(8, 4, 32)}
    digits.batch = lambda rows: same
    model = Knowing(image, schedule)
    assert prediction_error(model, digits, samples=8, schedule=schedule).overall == pytest.approx(0, abs=1e-6)
    settings = {"seed": 0, "steps": 8, "guidance": 1.0, "bar": None}
    text = same["tokens"][:2], digits.null_tokens
    found = sample(model, *text, **settings, schedule=schedule)
    torch.testing.assert_close(found, image.expand_as(found), atol=0.02, rtol=0)
    if kind != "v_prediction":
        assert prediction_error(model, digits, samples=8).overall > 0.1
        assert (sample(model, *text, **settings) - image).abs().max() > 0.5


def test_the_shipped_dense_model_repeats_its_log():
    digits = load_dataset("digits", split="held_out")
    log = (PRETRAINED["digits"] / LOG_FILE).read_text().splitlines()
    logged = json.loads(log[-2])["v_mse"]
    error = prediction_error(load_pixart(PRETRAINED["digits"]), digits)
    assert error.overall == pytest.approx(logged, abs=1e-3)


def test_too_few_samples_are_refused():
    digits = load_dataset("digits", split="held_out")
    with pytest.raises(ValueError, match="samples=3 must be at least 4"):
        prediction_error(nn.Linear(1, 1), digits, samples=3)
    digits._labels = digits._labels[:2]
    with pytest.raises(ValueError, match="dataset: 'digits' has 2 images, it must be at least 4"):
        prediction_error(nn.Linear(1, 1), digits)
