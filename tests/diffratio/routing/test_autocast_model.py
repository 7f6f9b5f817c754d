"""bfloat16 models and autocast: the dense model's dtypes, and at most twice its error."""

import copy

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio, summary

GRAD = pytest.mark.parametrize("grad", [False, True], ids=["mod_block", "modules"])
EVERYTHING = DiffRatioConfig(0.0, rescale="none")
# Deep enough for a residual stream that is rounded in every block to show.
LAYERS = 12


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def rms(x):
    return x.double().square().mean().sqrt().item()


@pytest.fixture(params=["pixart", "dit"])
def deep(request, tiny):
    return tiny.make(request.param, num_layers=LAYERS)


@GRAD
def test_autocast_errs_at_most_twice_as_much_as_the_dense_model(tiny, deep, grad):
    inputs = tiny.inputs(deep)
    exact = tiny.run(copy.deepcopy(deep).double(), tiny.inputs(copy.deepcopy(deep).double()))
    with autocast():
        dense = tiny.run(deep, inputs, grad)
        routed = tiny.run(apply_diffratio(deep, EVERYTHING), inputs, grad)
    assert routed.dtype == dense.dtype
    assert 0 < rms(routed - exact) <= 2 * rms(dense - exact)


@GRAD
def test_a_bfloat16_model_errs_at_most_twice_as_much_as_the_dense_model(tiny, deep, grad):
    exact = tiny.run(copy.deepcopy(deep).double(), tiny.inputs(copy.deepcopy(deep).double()))
    half = deep.bfloat16()
    inputs = tiny.inputs(half)
    dense = tiny.run(half, inputs, grad)
    routed = tiny.run(apply_diffratio(half, EVERYTHING), inputs, grad)
    assert {row.path for row in summary(half)} == {"mod_block"}
    assert routed.dtype == dense.dtype == torch.bfloat16
    assert 0 < rms(routed - exact) <= 2 * rms(dense - exact)


@GRAD
def test_every_block_under_autocast_returns_the_dense_blocks_dtype(tiny, deep, grad):
    def dtypes():
        seen = []
        handles = [
            block.register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
            for block in deep.transformer_blocks
        ]
        with autocast():
            tiny.run(deep, tiny.inputs(deep), grad)
        for handle in handles:
            handle.remove()
        return seen

    dense = dtypes()
    apply_diffratio(deep, DiffRatioConfig(0.5, overrides={3: 1.0}))
    assert dtypes() == dense


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_both_paths_agree_where_tokens_are_dropped(tiny, model, mode):
    """Both choose the same tokens: a different choice would differ by far more than rounding."""
    if mode == "bfloat16":
        model.bfloat16()
    tiny.route(model, 0.5)
    inputs = tiny.inputs(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        fused, modules = tiny.run(model, inputs), tiny.run(model, inputs, grad=True)
        assert tiny.kept(model, inputs) == [[32, 32]] * tiny.layers
    assert fused.dtype == modules.dtype
    assert rms(fused - modules) <= 0.02 * rms(modules)


def test_training_under_autocast_gives_every_parameter_a_finite_gradient_of_its_own_dtype(tiny, model):
    tiny.route(model, 0.5)
    with autocast():
        loss = tiny.run(model, tiny.inputs(model), grad=True).float().square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_routers_stay_fp32_in_a_bfloat16_model_and_keep_their_scores(tiny, model):
    tiny.route(model.bfloat16(), 0.5)
    weights = [block.diffratio.router_weight for block in model.transformer_blocks]
    assert {weight.dtype for weight in weights} == {torch.float32}
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1 + 2**-12)  # lost in bfloat16
    tiny.run(model, tiny.inputs(model), grad=True).float().sum().backward()
    assert {weight.grad.dtype for weight in weights} == {torch.float32}


def test_a_model_cast_after_patching_runs_in_one_operator_as_well(tiny, model):
    before = copy.deepcopy(model).bfloat16()
    tiny.route(model, 0.5).bfloat16()
    assert {row.path for row in summary(model)} == {"mod_block"}
    inputs = tiny.inputs(model)
    assert torch.equal(tiny.run(model, inputs), tiny.run(tiny.route(before, 0.5).bfloat16(), inputs))
