"""torch.func, jit.trace and functional calls on a routed model, and what torch's FLOP counter says."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffratio import DiffRatioConfig, apply_diffratio, disable_diffratio, learn_ratios, remove_diffratio


@pytest.fixture
def routed(tiny, model):
    return tiny.route(model, 0.5)


def called(tiny, model):
    """The model as a function of its latent alone."""
    inputs = tiny.inputs(model)
    latent = inputs.pop("hidden_states")
    return lambda x: model(x, **inputs, return_dict=False)[0], latent


TRANSFORMS = {
    "trace": lambda call, x: torch.jit.trace(call, x, check_trace=False),
    "vmap": lambda call, x: vmap(call)(x[None]),
    "grad": lambda call, x: grad(lambda x: call(x).sum())(x),
    "vjp": lambda call, x: vjp(call, x),
    "jvp": lambda call, x: jvp(call, (x,), (x,)),
    "jacrev": lambda call, x: torch.func.jacrev(lambda x: call(x).sum())(x),
    "hessian": lambda call, x: torch.func.hessian(lambda x: call(x).sum())(x),
    "forward-mode": lambda call, x: dual(call, x),
    "functionalize": lambda call, x: torch.func.functionalize(call)(x),
}


def dual(call, x):
    with torch.autograd.forward_ad.dual_level():
        return call(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_that_cannot_work_say_so(tiny, routed, name, learned):
    if learned:
        learn_ratios(routed, start=0.75)
    call, x = called(tiny, routed.requires_grad_(name != "trace"))
    with pytest.raises((RuntimeError, NotImplementedError), match="diffratio.*"):
        TRANSFORMS[name](call, x)
    before = tiny.run(routed, tiny.inputs(routed))
    disable_diffratio(routed)
    if name == "vjp":
        TRANSFORMS[name](call, x)
    assert before.isfinite().all()


@pytest.mark.parametrize("gradients", [False, True])
def test_functional_call_runs_with_the_weights_that_it_is_given(tiny, routed, gradients):
    inputs, other = tiny.inputs(routed), copy.deepcopy(routed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    before = tiny.run(routed, inputs, gradients)
    with torch.set_grad_enabled(gradients):
        output = functional_call(
            routed, dict(other.named_parameters()), kwargs=inputs | {"return_dict": False}
        )[0]
    assert torch.equal(output, tiny.run(other, inputs, gradients))
    assert torch.equal(tiny.run(routed, inputs, gradients), before)
    if gradients:
        output.square().mean().backward()
        assert all(block.diffratio.router_weight.grad is not None for block in other.transformer_blocks)
        assert all(p.grad is None for p in routed.parameters())


def flops(tiny, model, gradients, backward=False):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = tiny.run(model, tiny.inputs(model), gradients)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("compression", [0.0, 0.5, 1.0])
def test_flops_are_the_same_with_and_without_gradients_and_fall(tiny, model, compression):
    dense = flops(tiny, model, False)
    apply_diffratio(model, DiffRatioConfig(compression))
    inference, training = flops(tiny, model, False), flops(tiny, model, True)
    assert inference == training
    x = tiny.inputs(model)["hidden_states"]
    tokens = x.shape[0] * x.shape[2] * x.shape[3] // model.config.patch_size**2
    routers = sum(2 * tokens * block.diffratio.router_weight.numel() for block in model.transformer_blocks)
    assert flops(tiny, remove_diffratio(model), False) == dense
    if compression == 0:
        assert inference == dense + routers
    else:
        assert inference < dense * (1 - compression / 2)


def test_flops_of_a_backward_pass_are_counted(tiny, model):
    dense = flops(tiny, model, True, backward=True)
    apply_diffratio(model, DiffRatioConfig(0.0))
    assert dense <= flops(tiny, model, True, backward=True) <= 1.01 * dense
