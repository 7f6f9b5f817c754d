"""remove, disable and enable: the model is again exactly what it was."""

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    disable_diffratio,
    enable_diffratio,
    record_routing,
    remove_diffratio,
    save_diffratio,
    summary,
)
from diffratio.routing.find import routed_blocks


def test_removal_restores_outputs_forwards_state_and_hooks_bit_for_bit(tiny, model):
    inputs = tiny.inputs(model)
    before, dense = tiny.snapshot(model), tiny.run(model, inputs)
    tiny.route(model)
    assert not torch.equal(tiny.run(model, inputs), dense)
    assert remove_diffratio(model) is model
    assert tiny.snapshot(model) == before
    assert torch.equal(tiny.run(model, inputs), dense)


def test_a_training_step_after_removal_is_the_dense_models(tiny, model):
    inputs = tiny.inputs(model)

    def gradients():
        model.zero_grad()
        tiny.run(model, inputs, grad=True).square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    dense = gradients()
    remove_diffratio(tiny.route(model))
    again = gradients()
    assert dense.keys() == again.keys()
    assert all(torch.equal(dense[name], again[name]) for name in dense)


def test_weights_trained_while_patched_stay_after_removal(tiny, model):
    tiny.route(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    expected = {n: p.clone() for n, p in model.state_dict().items() if ".diffratio." not in n}
    remove_diffratio(model)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("grad", [False, True])
def test_a_disabled_model_is_bit_equal_to_the_dense_model(tiny, model, grad):
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs, grad)
    tiny.route(model, num_regions=4)
    routed = tiny.run(model, inputs, grad)
    assert disable_diffratio(model) is model
    assert torch.equal(tiny.run(model, inputs, grad), dense)
    assert tiny.kept(model, inputs) == []
    assert enable_diffratio(model) is model
    assert torch.equal(tiny.run(model, inputs, grad), routed)


def test_a_disabled_model_needs_no_timestep_of_its_own(tiny):
    model = tiny.route(tiny.pixart(), num_regions=4)
    disable_diffratio(model)
    # The dense model's own complaint, not ours.
    with pytest.raises(AttributeError):
        tiny.run(model, tiny.inputs(model) | {"timestep": None})


class Doubling(ModelHook):
    def new_forward(self, module, *args, **kwargs):
        return 2 * self.fn_ref.original_forward(*args, **kwargs)


def test_removal_under_a_later_hook_is_an_error_that_changes_nothing(tiny, model):
    inputs = tiny.inputs(model)
    tiny.route(model)
    registry = HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[1])
    registry.register_hook(Doubling(), "doubling")
    before, hooked = tiny.snapshot(model), tiny.run(model, inputs)
    with pytest.raises(ValueError, match=r"transformer_blocks\.1 was hooked after apply_diffratio"):
        remove_diffratio(model)
    assert tiny.snapshot(model) == before
    assert torch.equal(tiny.run(model, inputs), hooked)
    registry.remove_hook("doubling")
    remove_diffratio(model)
    assert not routed_blocks(model)


def test_apply_on_a_block_that_carries_hooks_is_an_error_until_they_are_gone(tiny, model):
    registry = HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[2])
    registry.register_hook(Doubling(), "doubling")
    before = tiny.snapshot(model)
    with pytest.raises(ValueError, match=r"transformer_blocks\.2: its forward was replaced"):
        apply_diffratio(model)
    assert tiny.snapshot(model) == before
    registry.remove_hook("doubling")  # leaves the plain bound forward on the instance
    apply_diffratio(model)
    assert len(routed_blocks(model)) == tiny.layers


def test_apply_on_a_block_with_a_torch_hook_is_an_error(tiny, model):
    handle = model.transformer_blocks[0].register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ValueError, match=r"transformer_blocks\.0: it carries hooks"):
        apply_diffratio(model)
    handle.remove()
    apply_diffratio(model)


def test_hooks_of_others_on_the_model_survive_removal(tiny, model):
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append("theirs"))
    remove_diffratio(tiny.route(model))
    tiny.run(model, tiny.inputs(model))
    assert calls == ["theirs"]


def test_three_rounds_of_apply_and_remove_end_where_they_began(tiny, model):
    inputs = tiny.inputs(model)
    before, dense, routed = tiny.snapshot(model), tiny.run(model, inputs), []
    for _ in range(3):
        tiny.route(model, 0.4)
        routed.append(tiny.run(model, inputs))
        assert {row.path for row in summary(model)} == {"mod_block"}
        remove_diffratio(model)
        assert tiny.snapshot(model) == before
        assert torch.equal(tiny.run(model, inputs), dense)
    assert torch.equal(routed[0], routed[1])
    assert torch.equal(routed[0], routed[2])


def test_apply_after_removal_may_ask_for_routers_of_another_kind(model):
    apply_diffratio(model)
    remove_diffratio(model)
    apply_diffratio(model, DiffRatioConfig(router_start="faithful", router_bias=True))
    assert model.transformer_blocks[0].diffratio.router_bias is not None


def test_every_call_on_a_model_without_diffratio_is_an_error(model, tmp_path):
    def record():
        with record_routing(model):
            pass

    calls = {
        "remove": lambda: remove_diffratio(model),
        "enable": lambda: enable_diffratio(model),
        "disable": lambda: disable_diffratio(model),
        "summary": lambda: summary(model),
        "save": lambda: save_diffratio(model, tmp_path / "new"),
        "record": record,
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="call apply_diffratio first"):
            call()
    assert not (tmp_path / "new").exists()
