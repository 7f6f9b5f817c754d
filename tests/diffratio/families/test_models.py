"""Whole tiny models of every family: routed, trained with gradient checkpointing, and as they were."""

import pytest
import torch
from torch import Tensor

from diffratio import DiffRatioConfig, apply_diffratio, record_routing, remove_diffratio, summary

from .cases import MODELS
from .cases.case import awake


def made(name: str):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return awake(model), inputs


def run(model, inputs) -> Tensor:
    out = model(**inputs, return_dict=False)[0]
    return torch.cat([part.flatten() for part in out]) if isinstance(out, list) else out


def test_timesteps_of_tokens_are_not_those_of_samples():
    """Where timesteps [2] are of kinds of tokens, the noisiest decides for both samples."""
    model, inputs = made("minimax_h3")
    kept = {block: [0.0, 0.5] for block in range(3)}
    apply_diffratio(model, DiffRatioConfig(0.0, kept, num_regions=2))
    for timesteps, rows in (([0.9, 0.3, 0.999], 6), ([0.9, 0.7, 0.999], 12)):
        with torch.no_grad(), record_routing(model) as record:
            run(model, inputs | {"timestep": torch.tensor(timesteps)})
        assert all(routing.kept().sum(1).tolist() == [rows, rows] for routing in record)


def without_scores(model) -> None:
    """Factor 1 for every row: what is kept is what the model does."""
    for block in model.modules():
        if "_diffratio" in vars(block):
            torch.nn.init.zeros_(block.diffratio.router_weight)


@pytest.mark.parametrize("name", MODELS)
def test_everything_kept_is_the_model_and_removing_gives_it_back(name):
    model, inputs = made(name)
    with torch.no_grad():
        wanted = run(model, inputs)
        apply_diffratio(model, DiffRatioConfig(compression=0.0))
        without_scores(model)
        torch.testing.assert_close(run(model, inputs), wanted, atol=5e-6, rtol=5e-5)
        remove_diffratio(model)
        assert torch.equal(run(model, inputs), wanted)


def gradients(model, inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's output, and what it leaves of a loss in every parameter."""
    model.zero_grad(set_to_none=True)
    out = run(model, inputs)
    out.square().mean().backward()
    return out, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:the routers are untrained")
@pytest.mark.parametrize("name", MODELS)
def test_half_kept_trains_the_routers_too(name):
    model, inputs = made(name)
    with torch.no_grad():
        dense = run(model, inputs)
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    out, grads = gradients(model.train(), inputs)
    assert not torch.allclose(out, dense, atol=1e-4)
    assert any("diffratio" in key for key in grads)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert all(row.kept_tokens[0] == -(-row.tokens // 2) for row in summary(model))


@pytest.mark.filterwarnings("ignore:the routers are untrained")
@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing_changes_nothing(name):
    model, inputs = made(name)
    reason = getattr(MODELS[name], "checkpointing", None)
    if reason is None and not model._supports_gradient_checkpointing:
        reason = "diffusers' model has no gradient checkpointing"
    if reason is not None:
        pytest.skip(reason)
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    model.train()
    _, plain = gradients(model, inputs)
    model.enable_gradient_checkpointing()
    _, checkpointed = gradients(model, inputs)
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, atol=1e-6, rtol=1e-5)
