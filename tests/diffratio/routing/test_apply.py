"""apply_diffratio: what it changes, what it leaves alone, and what it refuses."""

import copy
import types

import pytest
import torch
from torch import nn

from diffratio import DiffRatioConfig, apply_diffratio, learn_ratios, remove_diffratio, summary
from diffratio.routing.find import routed_blocks

GRAD = pytest.mark.parametrize("grad", [False, True], ids=["mod_block", "modules"])
EVERYTHING = DiffRatioConfig(0.0, rescale="none")


@GRAD
def test_keeping_every_token_equals_the_dense_model(tiny, model, grad):
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs)
    apply_diffratio(model, EVERYTHING)
    assert {row.path for row in summary(model)} == {"mod_block"}
    assert (tiny.run(model, inputs, grad) - dense).abs().max() <= 1e-6 * dense.abs().max()


@GRAD
@pytest.mark.parametrize("mask", ["absent", "nothing counts", "everything counts"])
def test_every_kind_of_text_mask_equals_the_dense_model(tiny, grad, mask):
    model = tiny.pixart()
    inputs = tiny.inputs(model)
    if mask == "absent":
        inputs["encoder_attention_mask"] = None
    else:
        inputs["encoder_attention_mask"][0] = int(mask == "everything counts")
    dense = tiny.run(model, inputs)
    apply_diffratio(model, EVERYTHING)
    # Where nothing counts, diffusers adds -10000 to every score, which rounds them to 2^-10 = 1e-3.
    tolerance = 1e-4 if mask == "nothing counts" else 1e-6
    assert (tiny.run(model, inputs, grad) - dense).abs().max() <= tolerance * dense.abs().max()


def test_text_tokens_that_do_not_count_do_not_matter(tiny):
    model = tiny.pixart()
    inputs = tiny.inputs(model)
    tiny.route(model)
    expected = tiny.run(model, inputs)
    masked_out = inputs["encoder_attention_mask"] == 0
    inputs["encoder_hidden_states"][masked_out] = 1e3
    assert torch.equal(tiny.run(model, inputs), expected)
    inputs["encoder_hidden_states"][~masked_out] += 1
    assert not torch.allclose(tiny.run(model, inputs), expected)


def test_both_paths_agree_where_tokens_are_dropped(tiny, model):
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs)
    tiny.route(model, router_bias=True)
    fused, modules = tiny.run(model, inputs), tiny.run(model, inputs, grad=True)
    assert (fused - modules).abs().max() <= 1e-6 * dense.abs().max()
    assert (fused - dense).abs().max() > 1e-2


def test_the_identity_start_is_the_pretrained_model_until_a_router_learns(tiny, model):
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs)
    apply_diffratio(model, DiffRatioConfig(0.0))
    # Factor 2 * sigmoid(logit) with |logit| <= 1e-3 * sqrt(32) * a few on LayerNorm-sized tokens.
    assert (tiny.run(model, inputs) - dense).abs().max() < 0.02 * dense.abs().max()


def test_names_classes_and_block_lists_stay(tiny, model):
    before = {name: type(module) for name, module in model.named_modules()}
    parameters = list(model.state_dict())
    no_split, blocks, dtype = model._no_split_modules, list(model.transformer_blocks), model.dtype
    apply_diffratio(model)
    after = {name: type(module) for name, module in model.named_modules() if "diffratio" not in name}
    assert after == before
    assert [name for name in model.state_dict() if ".diffratio." not in name] == parameters
    assert (model._no_split_modules, model.dtype) == (no_split, dtype)
    assert [a is b for a, b in zip(model.transformer_blocks, blocks, strict=True)] == [True] * tiny.layers
    assert len(routed_blocks(model)) == tiny.layers


def test_the_dtype_that_a_pipeline_asks_for_stays(model):
    dtype = model.to(torch.bfloat16).dtype
    apply_diffratio(model)
    assert model.dtype == dtype == torch.bfloat16
    assert model.transformer_blocks[0].diffratio.router_weight.dtype == torch.float32


def test_inputs_may_be_positional(tiny, model):
    inputs = tiny.inputs(model, timestep=900)
    tiny.route(model, num_regions=2, overrides={0: [0.2, 0.6]})
    expected = tiny.run(model, inputs)
    order = ["hidden_states", "timestep", "class_labels"]
    if "encoder_hidden_states" in inputs:
        order = ["hidden_states", "encoder_hidden_states", "timestep"]
    rest = {name: value for name, value in inputs.items() if name not in order}
    with torch.no_grad():
        assert torch.equal(model(*[inputs[name] for name in order], **rest).sample, expected)


def test_applying_twice_replaces_the_counts_and_keeps_the_routers(tiny, model):
    tiny.route(model, 0.5)
    routers = [block.diffratio for block in routed_blocks(model)]
    weights = [router.router_weight.clone() for router in routers]
    assert tiny.kept(model, tiny.inputs(model)) == [[32, 32]] * tiny.layers
    apply_diffratio(model, DiffRatioConfig(0.8, overrides={-1: 0.1}))
    assert tiny.kept(model, tiny.inputs(model)) == [[13, 13], [13, 13], [58, 58]]
    assert all(block.diffratio is r for block, r in zip(routed_blocks(model), routers, strict=True))
    assert all(torch.equal(r.router_weight, w) for r, w in zip(routers, weights, strict=True))


@pytest.mark.parametrize("change", [{"router_start": "faithful"}, {"router_bias": True}])
def test_routers_of_another_kind_on_an_applied_model_are_an_error(tiny, model, change):
    tiny.route(model, 0.5)
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*remove_diffratio"):
        apply_diffratio(model, DiffRatioConfig(0.9, **change))
    assert tiny.kept(model, tiny.inputs(model)) == [[32, 32]] * tiny.layers


def test_no_matching_block_is_an_error_and_leaves_the_model_untouched(tiny):
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2))
    before = tiny.snapshot(model)
    with pytest.raises(ValueError, match="no transformer block.*register_block_spec"):
        apply_diffratio(model)
    assert tiny.snapshot(model) == before


def test_one_block_that_cannot_be_routed_is_an_error_and_leaves_the_model_untouched(tiny, model):
    model.transformer_blocks[1].only_cross_attention = True
    before = tiny.snapshot(model)
    with pytest.raises(ValueError, match=r"transformer_blocks\.1: only_cross_attention"):
        apply_diffratio(model)
    assert tiny.snapshot(model) == before


def test_an_override_of_a_missing_layer_is_an_error_and_leaves_the_model_untouched(tiny, model):
    before = tiny.snapshot(model)
    with pytest.raises(ValueError, match=r"overrides: layer 3 must be in -3\.\.2"):
        apply_diffratio(model, DiffRatioConfig(overrides={3: 0.1}))
    assert tiny.snapshot(model) == before


def test_a_pipeline_is_patched_at_its_transformer_and_returned(tiny, model):
    pipe = types.SimpleNamespace(transformer=model)
    assert apply_diffratio(pipe) is pipe
    assert len(summary(pipe)) == len(summary(model)) == tiny.layers


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_a_wrapped_model_is_patched_under_the_names_of_the_model(tiny, model, wrap):
    wrapped = wrap(model)
    assert apply_diffratio(wrapped) is wrapped
    names = [f"transformer_blocks.{i}" for i in range(tiny.layers)]
    assert [row.name for row in summary(wrapped)] == names
    if wrap is not torch.optim.swa_utils.AveragedModel:  # which wraps a copy
        assert [row.name for row in summary(model)] == names


def test_a_reducer_that_would_miss_new_parameters_is_an_error_that_changes_nothing(tiny, model):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        routed = nn.parallel.DistributedDataParallel(apply_diffratio(model))
    finally:
        torch.distributed.destroy_process_group()
    for wrapped, call in ((plain, apply_diffratio), (routed, learn_ratios), (routed, remove_diffratio)):
        before = tiny.snapshot(wrapped)
        with pytest.raises(ValueError, match=f"call {call.__name__} before wrapping it"):
            call(wrapped)
        assert tiny.snapshot(wrapped) == before
    assert len(summary(routed)) == tiny.layers


@pytest.mark.parametrize("wrong", [None, 3, "model", nn.Linear, types.SimpleNamespace(transformer=None)])
def test_a_model_of_the_wrong_type_is_a_named_error(wrong):
    with pytest.raises(TypeError, match="model must be an nn.Module or a pipeline"):
        apply_diffratio(wrong)


@pytest.mark.parametrize("wrong", [0.3, {"compression": 0.3}, "0.3", DiffRatioConfig])
def test_a_config_of_the_wrong_type_is_a_named_error(tiny, model, wrong):
    before = tiny.snapshot(model)
    with pytest.raises(TypeError, match="config must be a DiffRatioConfig"):
        apply_diffratio(model, wrong)
    assert tiny.snapshot(model) == before


@GRAD
def test_a_mask_over_image_tokens_is_a_named_error(tiny, grad):
    model = tiny.route(tiny.pixart())
    with pytest.raises(ValueError, match="attention_mask over image tokens"):
        tiny.run(model, tiny.inputs(model) | {"attention_mask": torch.ones(2, tiny.tokens)}, grad)
