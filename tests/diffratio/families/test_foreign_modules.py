"""Modules that are not what their weights say: another class, quantised, fused, hooked. They are called."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from diffratio import remove_diffratio, summary

LINEARS = ["attn1.to_q", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]


def close(a, b, tolerance=1e-6):
    return (a - b).abs().max() <= tolerance * b.abs().max()


def paths(model):
    return {row.path for row in summary(model)}


class Shifted(nn.Linear):
    """Computes more than its weight says."""

    def forward(self, x):
        return super().forward(x) + 1


class Doubled(torch.Tensor):
    """A weight that is not what its bytes say, as a quantised one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            return function(args[0], 2 * args[1].as_subclass(torch.Tensor), *args[2:])
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_of_another_class_is_called(tiny, model, name):
    block = model.transformer_blocks[1]
    inputs, plain = tiny.inputs(model), tiny.run(tiny.route(copy.deepcopy(model)), tiny.inputs(model))
    tiny.route(model)
    block.get_submodule(name).__class__ = Shifted
    assert summary(model)[1].reason == f"{name}: a {Shifted.__module__}.Shifted, not a plain nn.Linear"
    output = tiny.run(model, inputs)
    assert close(output, tiny.run(model, inputs, grad=True))
    assert not close(output, plain, 1e-3)


@pytest.mark.parametrize("name", LINEARS)
def test_a_weight_of_a_tensor_subclass_is_used_as_such(tiny, model, name):
    linear = model.transformer_blocks[1].get_submodule(name)
    expected = copy.deepcopy(model)
    expected.transformer_blocks[1].get_submodule(name).weight.data.mul_(2)
    tiny.route(model)
    linear.weight = nn.Parameter(linear.weight.data.as_subclass(Doubled), requires_grad=False)
    assert summary(model)[1].reason == f"{name}: its weight is a Doubled"
    inputs = tiny.inputs(model)
    assert close(tiny.run(model, inputs), tiny.run(tiny.route(expected), inputs))


def test_dynamically_quantised_linears_take_the_modules_path_and_can_be_removed(tiny, model):
    inputs = tiny.inputs(model)
    tiny.route(model, 0.0, rescale="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is being renamed
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    assert paths(model) == {"modules"}
    routed = tiny.run(model, inputs)
    dense = tiny.run(remove_diffratio(model), inputs)
    # Eight-bit activations: a last-bit difference may move a rounding by one step of 1/127.
    assert close(routed, dense, 0.02)


@pytest.mark.parametrize("grad", [False, True])
def test_fused_qkv_projections_keep_the_outputs(tiny, grad):
    model = tiny.route(tiny.pixart())
    inputs = tiny.inputs(model)
    expected = tiny.run(model, inputs)
    model.fuse_qkv_projections()
    assert {row.reason for row in summary(model)} == {"attn1: its processor is FusedAttnProcessor2_0"}
    assert close(tiny.run(model, inputs, grad), expected)
    model.unfuse_qkv_projections()
    assert paths(model) == {"mod_block"}
    assert torch.equal(tiny.run(model, inputs), expected)


def prune_half(linear):
    prune.l1_unstructured(linear, "weight", 0.5)


@pytest.mark.parametrize("name", [*LINEARS, "attn1", "attn1.to_out.1", "ff", "ff.net.0", "ff.net.1"])
def test_a_forward_hook_inside_a_block_is_called_and_obeyed(tiny, model, name):
    inputs, calls = tiny.inputs(model), []
    tiny.route(model)
    expected = tiny.run(model, inputs)

    def hook(module, args, output):
        calls.append(output.shape)
        return 3 * output

    module = model.transformer_blocks[1].get_submodule(name)
    handle = module.register_forward_hook(hook)
    assert (summary(model)[1].path, summary(model)[1].reason) == ("modules", f"{name}: it carries hooks")
    assert not close(tiny.run(model, inputs), expected, 1e-4)
    assert [shape[:-1].numel() for shape in calls] == [2 * 32]  # called once, with the kept tokens
    handle.remove()
    assert torch.equal(tiny.run(model, inputs), expected)


@pytest.mark.parametrize("name", ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "attn2"])
def test_a_hook_in_the_cross_attention_is_called_and_obeyed(tiny, name):
    model = tiny.pixart()
    inputs, calls = tiny.inputs(model), []
    tiny.route(model)
    expected = tiny.run(model, inputs)
    module = model.transformer_blocks[0].get_submodule(name)
    module.register_forward_hook(lambda module, args, output: calls.append(name) or 3 * output)
    assert not close(tiny.run(model, inputs), expected, 1e-4)
    assert calls == [name]


def test_a_hook_may_keep_what_its_module_was_given(tiny, model):
    """Rows are changed in place where no module has seen them."""
    inputs, names = tiny.inputs(model), [name for name, _ in model.transformer_blocks[0].named_modules()]
    tiny.route(model)
    for name in names:
        if name and "norm" not in name:  # norms are not called: hooks on them are refused
            kept, module = [], model.transformer_blocks[0].get_submodule(name)
            hook = module.register_forward_hook(
                lambda module, args, _, kept=kept: kept.extend((t, t.clone()) for t in args)
            )
            tiny.run(model, inputs)
            hook.remove()
            assert all(torch.equal(now, then) for now, then in kept), name


@pytest.mark.parametrize("change", [prune_half, parametrizations.weight_norm], ids=["prune", "weight_norm"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_weight_that_became_computed_is_called(tiny, model, change, grad):
    inputs, twin = tiny.inputs(model), copy.deepcopy(model)
    tiny.route(model)
    tiny.run(model, inputs)
    change(model.transformer_blocks[0].ff.net[2])
    change(twin.transformer_blocks[0].ff.net[2])
    tiny.route(twin)
    twin.load_state_dict(model.state_dict())
    assert close(tiny.run(model, inputs, grad), tiny.run(twin, inputs, grad), 1e-5)
    assert summary(model)[0].path == "modules"


@pytest.mark.parametrize("grad", [False, True])
def test_dropout_in_training_drops_and_in_eval_does_not(tiny, grad):
    model = tiny.route(tiny.dit(dropout=0.5))
    inputs = tiny.inputs(model)
    assert paths(model) == {"modules"}
    assert torch.equal(tiny.run(model, inputs, grad), tiny.run(model, inputs, grad))
    model.transformer_blocks.train()
    assert not torch.equal(tiny.run(model, inputs, grad), tiny.run(model, inputs, grad))
