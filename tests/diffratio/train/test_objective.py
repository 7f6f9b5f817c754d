"""The loss in every prediction type, with and without min-SNR, and learned variances."""

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import nn

from diffratio.diffusion.variance import VariationalBound
from diffratio.train import ArgumentError
from diffratio.train.objective import Objective

B = 4


class Constant(nn.Module):
    """Predicts the same tensor whatever it is given."""

    def __init__(self, predicted):
        super().__init__()
        self.predicted = predicted

    def forward(self, hidden_states, timestep=None, encoder_hidden_states=None, return_dict=True, **_):
        return (self.predicted,)


def batch():
    return {
        "pixel_values": torch.randn(B, 1, 4, 4),
        "noise": torch.randn(B, 1, 4, 4),
        "timestep": torch.tensor([0, 10, 500, 900]),
        "tokens": torch.randn(B, 2, 8),
    }


def target(given, scheduler, kind):
    a = scheduler.alphas_cumprod[given["timestep"]].view(-1, 1, 1, 1)
    clean, noise = given["pixel_values"], given["noise"]
    return {"epsilon": noise, "sample": clean, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean}[
        kind
    ]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_is_the_weighted_error_of_what_is_predicted(kind, gamma):
    scheduler, given = DDPMScheduler(prediction_type=kind), batch()
    loss = Objective(Constant(None), scheduler, gamma)(Constant(torch.zeros(B, 2, 4, 4)), given)
    error = target(given, scheduler, kind).square().mean((1, 2, 3))
    a = scheduler.alphas_cumprod[given["timestep"]]
    snr = a / (1 - a)
    weight = {"epsilon": 1 / snr, "v_prediction": 1 / (snr + 1), "sample": torch.ones(B)}[kind]
    torch.testing.assert_close(loss, error if gamma is None else error * weight * snr.clamp(max=gamma))


def test_a_learned_variance_is_left_alone():
    scheduler, given = DDPMScheduler(), batch()
    predicted = torch.cat([given["noise"], torch.full((B, 1, 4, 4), 7.0)], dim=1)
    assert torch.equal(Objective(Constant(None), scheduler)(Constant(predicted), given), torch.zeros(B))


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_variance_is_trained_by_its_bound_and_the_mean_by_its_error(gamma):
    scheduler, given = DDPMScheduler(), batch()
    predicted = torch.randn(B, 2, 4, 4, requires_grad=True)
    plain, objective = (Objective(Constant(None), scheduler, gamma, learned) for learned in (False, True))
    loss = objective(Constant(predicted), given)
    bound = VariationalBound(scheduler)(
        predicted[:, :1] - given["noise"], predicted[:, 1:], given["timestep"]
    )
    # 0.001 of the sum over 1000 timesteps
    torch.testing.assert_close(loss, plain(Constant(predicted), given) + bound.mean((1, 2, 3)))
    mean, variance = torch.autograd.grad(loss.sum(), predicted)[0].chunk(2, 1)
    alone = torch.autograd.grad(plain(Constant(predicted), given).sum(), predicted)[0]
    torch.testing.assert_close(mean, alone[:, :1])
    assert (variance != 0).all() and (alone[:, 1:] == 0).all()
    assert objective.name == plain.name + " + variational bound"


def test_the_model_sees_the_noisy_image_and_the_class():
    model = DiTTransformer2DModel(2, 8, in_channels=1, num_layers=1, sample_size=4, norm_num_groups=1).eval()
    given, scheduler = batch() | {"attributes": torch.tensor([[3], [1], [4], [1]])}, DDPMScheduler()
    noisy = scheduler.add_noise(given["pixel_values"], given["noise"], given["timestep"])
    with torch.no_grad():
        predicted = model(noisy, given["timestep"], given["attributes"][:, 0]).sample
        loss = Objective(model, scheduler)(model, given)
    torch.testing.assert_close(loss, (predicted[:, :1] - given["noise"]).square().mean((1, 2, 3)))


def test_another_prediction_type_is_refused():
    with pytest.raises(ArgumentError, match="prediction_type 'flow'"):
        Objective(Constant(None), DDPMScheduler(prediction_type="flow"))
