"""Saved-tensor hooks around checkpointing: a recomputation finds the decisions of its own forward pass.

The hooks stand in for `save_on_cpu`, which copies on a GPU alone: what autograd saves comes back as another
tensor.
"""

import contextlib

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from diffratio import diffratio_loss, learn_ratios

HOOKS = {
    "none": contextlib.nullcontext,
    "save_on_cpu": lambda: save_on_cpu(pin_memory=False),
    "clones": lambda: saved_tensors_hooks(torch.clone, lambda t: t),
    "clones twice": lambda: saved_tensors_hooks(torch.clone, torch.clone),
}
CHECKPOINTS = {
    "none": None,
    "not re-entrant": lambda module, *args: checkpoint(module, *args, use_reentrant=False),
    "re-entrant": lambda module, *args: checkpoint(module, *args, use_reentrant=True),
}


@pytest.fixture(params=["regions", "learned", "learned regions"])
def routed(request, tiny, model):
    regions = 2 if "regions" in request.param else 1
    if "learned" in request.param:
        tiny.route(model, 0.0, num_regions=regions)
        table = learn_ratios(model, start=1.0)
        with torch.no_grad():
            table.ratios.copy_(torch.tensor([[0.55, 0.85], [0.72, 0.44], [0.95, 0.63]])[:, :regions])
    else:
        tiny.route(model, 0.0, num_regions=2, overrides={0: [0.2, 0.7], 1: [0.9, 0.1], 2: [0.0, 1.0]})
    return model.train()


def backward(tiny, model, hooks="none", checkpoints="none", timesteps=(100, 900, [100, 900])):
    """The gradients of several forward passes before one backward pass."""
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing = checkpoints != "none"
    model._gradient_checkpointing_func = CHECKPOINTS[checkpoints]
    torch.manual_seed(0)  # DiT drops labels in training
    losses = []
    for factor, timestep in enumerate(timesteps):
        inputs = tiny.inputs(model, timestep)
        inputs["hidden_states"] = ((factor + 1) * inputs["hidden_states"]).requires_grad_()
        with HOOKS[hooks]():
            losses.append(tiny.run(model, inputs, grad=True).square().mean())
            if "diffratio_ratios" in model._modules:
                losses.append(diffratio_loss(model, 0.5, 1.0))
    sum(losses).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpoints", ["none", "not re-entrant"])
@pytest.mark.parametrize("hooks", HOOKS)
def test_gradients_are_those_without_hooks_and_checkpointing(tiny, routed, hooks, checkpoints):
    expected, found = backward(tiny, routed), backward(tiny, routed, hooks, checkpoints)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("learned", [False, True])
def test_reentrant_checkpointing_of_one_region(tiny, model, hooks, learned):
    tiny.route(model.train(), 0.3)
    if learned:
        learn_ratios(model, start=0.75)
    expected, found = backward(tiny, model, timesteps=(5,)), backward(tiny, model, hooks, "re-entrant", (5,))
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("hooks", ["none", "clones"])
def test_reentrant_checkpointing_with_regions_is_right_or_refused(tiny, routed, hooks):
    expected = backward(tiny, routed)
    try:
        found = backward(tiny, routed, hooks, "re-entrant")
    except RuntimeError as error:
        assert "use_reentrant=False" in str(error)
        return
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_equal_inputs_in_other_regions_keep_their_own_decisions(tiny, routed):
    """Known by bits alone, the first block's inputs are the same in both passes."""

    def passes(hooks, checkpoints):
        routed.zero_grad(set_to_none=True)
        routed.gradient_checkpointing = checkpoints != "none"
        routed._gradient_checkpointing_func = CHECKPOINTS[checkpoints]
        torch.manual_seed(0)
        with HOOKS[hooks]():
            losses = [
                tiny.run(routed, tiny.inputs(routed, timestep), grad=True).square().mean()
                for timestep in (100, 900)
            ]
        sum(losses).backward()
        return {name: p.grad.clone() for name, p in routed.named_parameters() if p.grad is not None}

    expected, found = passes("none", "none"), passes("clones", "not re-entrant")
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)
