"""Weights that other tools change, wrap or replace: the routed model computes what the modules would."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from diffratio import load_diffratio, save_diffratio, summary

LORA = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"])


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max() <= tolerance * b.abs().max()


def paths(model):
    return {row.path for row in summary(model)}


def give_lora_weights(model):
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def merged(tiny, model):
    """A routed model whose dense weights have the LoRA merged into them."""
    wrapped = get_peft_model(copy.deepcopy(model), LORA)
    give_lora_weights(wrapped)
    return tiny.route(wrapped.merge_and_unload())


@pytest.mark.parametrize("order", ["patched, then LoRA", "LoRA, then patched", "LoRA by PeftModel"])
@pytest.mark.parametrize("grad", [False, True])
def test_lora_is_not_dropped(tiny, model, merged, order, grad):
    inputs = tiny.inputs(model)
    without = tiny.run(tiny.route(copy.deepcopy(model)), inputs)
    if order == "patched, then LoRA":
        tiny.route(model)
    model = get_peft_model(model, LORA) if "PeftModel" in order else inject_adapter_in_model(LORA, model)
    if order != "patched, then LoRA":
        tiny.route(model)
    give_lora_weights(model)
    output, expected = tiny.run(model, inputs, grad), tiny.run(merged, inputs)
    assert close(output, expected)
    assert not close(without, expected, 0.05)
    assert {row.reason for row in summary(model)} == {
        "attn1.to_q: a peft.tuners.lora.layer.Linear, not a plain nn.Linear"
    }


def test_merging_lora_into_a_patched_model_leaves_no_stale_weights(tiny, model, merged):
    inputs = tiny.inputs(model)
    wrapped = get_peft_model(tiny.route(model), LORA)
    give_lora_weights(wrapped)
    plain = wrapped.merge_and_unload()
    assert plain is model
    assert paths(model) == {"mod_block"}
    assert close(tiny.run(model, inputs), tiny.run(merged, inputs))


def test_lora_and_routers_train_together_and_the_routers_save_under_their_own_names(tiny, model, tmp_path):
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    trained = LoraConfig(r=4, target_modules=["to_q"], modules_to_save=["diffratio"])
    wrapped = get_peft_model(tiny.route(model), trained)
    give_lora_weights(wrapped)
    tiny.run(wrapped, inputs, grad=True).square().mean().backward()
    with torch.no_grad():
        touched = {n: p.add_(p.grad) for n, p in wrapped.named_parameters() if p.grad is not None}
    assert {name.split(".")[-1] for name in touched} >= {"router_weight"}
    assert any("lora_A" in name for name in touched)
    save_diffratio(wrapped, tmp_path)
    load_diffratio(dense, tmp_path)
    for ours, theirs in zip(dense.transformer_blocks, model.transformer_blocks, strict=True):
        assert torch.equal(ours.diffratio.router_weight, theirs.diffratio.router_weight)
        assert not torch.equal(ours.diffratio.router_weight, theirs.diffratio.original_module.router_weight)


def test_regions_are_entered_under_peft(tiny, model):
    wrapped = get_peft_model(tiny.route(model, num_regions=2, overrides={0: [0.2, 0.6]}), LORA)
    assert tiny.kept(wrapped, tiny.inputs(model, 900))[0] == [26, 26]
    assert tiny.kept(wrapped, tiny.inputs(model, 100))[0] == [52, 52]


def scaled_state(model):
    return {n: 1.5 * t if "attn1" in n else t for n, t in model.state_dict().items()}


CHANGES = {
    "in place": lambda m: [p.data.mul_(1.5) for p in m.parameters()],
    "copy_ through data": lambda m: [p.data.copy_(1.5 * p.data) for p in m.parameters()],
    "data replaced": lambda m: [setattr(p, "data", 1.5 * p.data) for p in m.parameters()],
    "data of one projection replaced": lambda m: [
        setattr(b.attn1.to_v.weight, "data", 1.5 * b.attn1.to_v.weight.data) for b in m.transformer_blocks
    ],
    "parameters replaced": lambda m: [
        setattr(b.attn1.to_k, "weight", nn.Parameter(1.5 * b.attn1.to_k.weight.data))
        for b in m.transformer_blocks
    ],
    "load_state_dict": lambda m: m.load_state_dict(scaled_state(m)),
    "load_state_dict with assign": lambda m: m.load_state_dict(scaled_state(m), assign=True),
    "float64": lambda m: m.double(),
    "float64 and back": lambda m: m.double().float(),
    "bfloat16": lambda m: m.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_never_stale(tiny, model, change):
    """The reference is a dense model with the same change, patched afterwards."""
    changed = copy.deepcopy(model)
    tiny.route(model)
    tiny.run(model, tiny.inputs(model))
    change(model)
    change(changed)
    # The same routers on both sides: the change must be seen in the block's own weights.
    for block in model.transformer_blocks:
        block.diffratio.float()
    tiny.route(model)
    tiny.route(changed)
    assert paths(model) == {"mod_block"}
    inputs = tiny.inputs(changed)
    tolerance = 1e-2 if inputs["hidden_states"].dtype is torch.bfloat16 else 1e-5
    assert close(tiny.run(model, inputs), tiny.run(changed, inputs), tolerance)


def test_an_optimizer_step_is_seen_by_the_fused_path(tiny, model):
    inputs = tiny.inputs(model)
    tiny.route(model)
    before = tiny.run(model, inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tiny.run(model, inputs, grad=True).square().mean().backward()
    assert all(block.attn1.to_k.weight.grad is not None for block in model.transformer_blocks)
    optimizer.step()
    assert paths(model) == {"mod_block"}
    after = tiny.run(model, inputs)
    assert not close(after, before, 1e-2)
    assert close(after, tiny.run(model, inputs, grad=True), 1e-6)
