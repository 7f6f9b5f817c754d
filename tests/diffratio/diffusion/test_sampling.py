import pytest
import torch

from diffratio.data import load_dataset
from diffratio.diffusion import sampling, sampling_scheduler
from diffratio.diffusion.sampling import sample
from diffratio.evaluation.classifier import classifier
from diffratio.routing.spacing import steps_by_region
from diffratio.toy import PRETRAINED, load_pixart
from tools.toy_pretrain import small_pixart


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", split="held_out")


def test_chunks_change_nothing_but_the_size_of_a_forward(digits, monkeypatch):
    model, sizes = load_pixart(PRETRAINED["digits"]), []
    text = digits.batch(range(5))["tokens"], digits.null_tokens
    together = sample(model, *text, seed=1, steps=3, bar=None)
    hook = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(sampling, "CHUNK", 2)
    parts = sample(model, *text, seed=1, steps=3, bar=None)
    hook.remove()
    assert sizes == [4, 4, 4] * 2 + [2] * 3
    torch.testing.assert_close(parts, together, atol=1e-4, rtol=0)


def test_the_model_sees_the_null_text_first_and_the_guided_mean_is_used(digits):
    class Echo(torch.nn.Module):
        """Predicts the first number of the text everywhere."""

        config = small_pixart(digits, 0, layers=1, heads=1).config
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images, encoder_hidden_states, timestep):
            value = encoder_hidden_states[:, 0, 0].view(-1, 1, 1, 1)
            return type("Output", (), {"sample": value.expand_as(images)})

    tokens, null = torch.full((2, 4, 32), 0.3), torch.full((4, 32), 0.1)

    def with_(tokens, guidance):
        return sample(Echo(), tokens, null, seed=0, steps=2, guidance=guidance, bar=None)

    # 0.1 + 2 (0.3 - 0.1) = 0.5
    torch.testing.assert_close(with_(tokens, 2.0), with_(torch.full((2, 4, 32), 0.5), 1.0))
    torch.testing.assert_close(with_(tokens, 0.0), with_(torch.full((2, 4, 32), 0.1), 1.0))


def test_samples_are_images_in_range_and_depend_on_the_seed_alone(digits):
    model = load_pixart(PRETRAINED["digits"])
    text = digits.batch(range(4))["tokens"], digits.null_tokens
    images = sample(model, *text, seed=5, steps=3, bar=None)
    assert images.shape == (4, 1, 8, 8) and images.dtype == torch.float32 and images.abs().max() <= 1
    assert torch.equal(images, sample(model, *text, seed=5, steps=3, bar=None))
    assert not torch.equal(images, sample(model, *text, seed=6, steps=3, bar=None))


def test_guidance_0_ignores_the_text(digits):
    model = load_pixart(PRETRAINED["digits"])
    words = [digits.encode([digit] * 3) for digit in ("2", "7")]

    def drawn(guidance):
        texts = [(tokens, digits.null_tokens) for tokens in words]
        return [sample(model, *text, seed=0, steps=3, guidance=guidance, bar=None) for text in texts]

    assert torch.equal(*drawn(0.0))
    assert not torch.allclose(*drawn(2.0))


class Told(torch.nn.Module):
    """Predicts the first number of the text everywhere, and as variance, if any, the second."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, digits, channels):
        super().__init__()
        self.config, self.out_channels = small_pixart(digits, 0, layers=1, heads=1).config, channels

    def forward(self, images, encoder_hidden_states, timestep):
        told = encoder_hidden_states[:, 0, : self.out_channels, None, None]
        return type("Output", (), {"sample": told.expand(-1, -1, *images.shape[2:])})


def told(mean, variance, count=3):
    text = torch.zeros(count, 4, 32)
    text[:, :, 0], text[:, :, 1] = mean, variance
    return text


def drawn(digits, channels, variance=0.0, guidance=1.0, steps=4, **options):
    model, null = Told(digits, channels), told(0.1, 0.5)[0]
    text = told(0.2, variance)
    return sample(
        model, text, null, seed=0, sampler="ddpm", steps=steps, guidance=guidance, bar=None, **options
    )


def test_ddpm_draws_with_the_variance_that_the_model_predicts(digits):
    fixed = drawn(digits, 1)
    torch.testing.assert_close(drawn(digits, 2, variance=-1.0), fixed)  # the smaller one of DDPM's two
    assert not torch.allclose(drawn(digits, 2, variance=1.0), fixed, atol=0.05)
    torch.testing.assert_close(drawn(digits, 2, -1.0, guidance=3.0), drawn(digits, 1, guidance=3.0))


def test_ddpm_s_noise_depends_on_the_seed_and_the_image_alone(digits, monkeypatch):
    together = drawn(digits, 1)
    assert not torch.equal(together[0], together[1])
    monkeypatch.setattr(sampling, "CHUNK", 2)
    assert torch.equal(drawn(digits, 1), together)


@pytest.mark.parametrize(
    ("sampler", "steps", "regions"), [("dpm++", 20, 4), ("ddpm", 100, 10), ("ddpm", 20, 4)]
)
def test_the_steps_fall_evenly_into_the_regions(sampler, steps, regions):
    scheduler = sampling_scheduler(None, sampler)
    assert steps_by_region(scheduler, steps, regions) == [steps // regions] * regions
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps[0] == 999


def test_ddpm_draws_digits(digits):
    batch, model = digits.batch(range(8)), load_pixart(PRETRAINED["digits"])
    images = sample(model, batch["tokens"], digits.null_tokens, seed=0, sampler="ddpm", steps=20, bar=None)
    seen = classifier(digits).judge(images)[1]
    assert (seen == batch["attributes"]).float().mean() >= 0.8
