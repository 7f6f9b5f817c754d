"""parameter_groups: weights, routers and ratios, each at their own rate."""

import pytest
import torch
from diffusers import DiTTransformer2DModel

from diffratio import DiffRatioConfig, apply_diffratio, learn_ratios
from diffratio.train import RatioController, parameter_groups

RATES = {"learning_rate": 1e-3, "ratio_learning_rate": 0.1}


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return DiTTransformer2DModel(2, 16, num_layers=3, sample_size=8, num_embeds_ada_norm=10)


@pytest.fixture
def routed(plain):
    return apply_diffratio(plain, DiffRatioConfig(compression=0.0, num_regions=2, router_bias=True))


def test_every_trained_parameter_is_in_one_group(routed):
    table = learn_ratios(routed)
    routed.proj_out_1.weight.requires_grad_(False)
    groups = parameter_groups(routed, router_learning_rate=2e-3, weight_decay=0.01, **RATES)
    settings = [(g["name"], g["lr"], g["weight_decay"]) for g in groups]
    assert settings == [("weights", 1e-3, 0.01), ("routers", 2e-3, 0.0), ("ratios", 0.1, 0.0)]
    assert [id(p) for p in groups[2]["params"]] == [id(table.ratios)]
    assert len(groups[1]["params"]) == 2 * 3
    wanted = [p for p in routed.parameters() if p.requires_grad]
    found = [p for group in groups for p in group["params"]]
    assert len(found) == len(wanted) and {id(p) for p in found} == {id(p) for p in wanted}
    torch.optim.AdamW(groups)


def test_routers_take_the_rate_of_the_weights_and_empty_groups_are_left_out(plain, routed):
    assert [(g["name"], g["lr"]) for g in parameter_groups(routed, learning_rate=0.5)] == [
        ("weights", 0.5),
        ("routers", 0.5),
    ]
    routed.requires_grad_(False)
    learn_ratios(routed)
    assert [g["name"] for g in parameter_groups(routed, **RATES)] == ["ratios"]


def test_a_pipeline_is_its_transformer(routed):
    class Pipe:
        transformer = routed

    assert len(parameter_groups(Pipe(), learning_rate=0.5)) == 2


def test_groups_made_before_learn_ratios_are_an_error(routed):
    with pytest.raises(ValueError, match="ratio_learning_rate=0.1: .*call learn_ratios first"):
        parameter_groups(routed, **RATES)


def test_ratios_without_a_rate_are_an_error(routed):
    learn_ratios(routed)
    with pytest.raises(ValueError, match="ratio_learning_rate must be given"):
        parameter_groups(routed, learning_rate=1e-3)


def test_nothing_to_train_is_an_error(routed):
    with pytest.raises(ValueError, match="DiTTransformer2DModel has nothing to train"):
        parameter_groups(routed.requires_grad_(False), learning_rate=1e-3)


@pytest.mark.parametrize(
    "name", ["learning_rate", "router_learning_rate", "ratio_learning_rate", "weight_decay"]
)
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf"), "1e-3"])
def test_a_bad_rate_is_named(routed, name, value):
    learn_ratios(routed)
    with pytest.raises(ValueError, match=rf"^{name}={value!r} must be a number from 0"):
        parameter_groups(routed, **{**RATES, name: value})


def test_an_optimizer_made_before_learn_ratios_is_noticed_by_the_controller(routed):
    """As a loop of one's own runs it: a real model, its gradients, torch's AdamW."""
    early = torch.optim.AdamW(routed.parameters(), lr=1e-3)
    controller = RatioController(learn_ratios(routed), target_compression=0.3, steps=2)
    late = torch.optim.AdamW(
        parameter_groups(routed, learning_rate=1e-3, ratio_learning_rate=controller.learning_rate)
    )
    inputs = {"timestep": torch.tensor([100, 900]), "class_labels": torch.tensor([1, 2])}

    def step(optimizer, controller):
        routed(torch.randn(2, 4, 8, 8), **inputs).sample.square().mean().backward()
        controller.before_step()
        optimizer.step()
        routed.zero_grad()
        controller.after_step()

    step(early, controller)
    with pytest.warns(UserWarning, match="no optimizer has changed the ratios in 2 steps"):
        step(early, controller)
    other = RatioController(routed.diffratio_ratios, target_compression=0.3, steps=2)
    before = other.table.ratios.detach().clone()
    step(late, other)
    assert other._left is None and not torch.equal(other.table.ratios, before)
