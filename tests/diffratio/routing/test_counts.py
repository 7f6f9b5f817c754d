"""How many tokens each layer keeps in each timestep region, and what a routed block does with them."""

import copy

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    learn_ratios,
    load_diffratio,
    record_routing,
    remove_diffratio,
    save_diffratio,
    summary,
)
from diffratio.routing.find import routed_layers

GRAD = pytest.mark.parametrize("grad", [False, True], ids=["mod_block", "modules"])
# [layer][region], compression; layer 2 is bypassed in the noisiest region.
TABLE = {0: [0.1, 0.2, 0.3, 0.4], -1: [0.5, 0.6, 0.7, 1.0]}
EDGES = [(0, 0), (249, 0), (250, 1), (499, 1), (500, 2), (749, 2), (750, 3), (999, 3)]


def ceil_tenths(compression):
    """Kept tokens of 64, in integers as the specification writes them."""
    return -(-round(10 - 10 * compression) * 64 // 10)


def gather_block_scatter(dense, routed, rescale):
    """The same routing around diffusers' own blocks: gather, block with a factor on its MLP, scatter."""
    for block, source in zip(dense.transformer_blocks, routed.transformer_blocks, strict=True):
        weight = source.diffratio.router_weight.detach()
        keep = -(-source._diffratio.kept[0] * 64 // 10)

        def forward(x, *args, block=block, weight=weight, keep=keep, **kwargs):
            logits = x @ weight
            index = logits.argsort(dim=1, descending=True, stable=True)[:, :keep].sort().values
            factor = 2 * logits.gather(1, index).sigmoid()[..., None] if rescale == "mlp" else 1.0
            handle = block.ff.register_forward_hook(lambda module, args, branch: factor * branch)
            rows = index[..., None].expand(-1, -1, x.shape[2])
            done = type(block).forward(block, x.gather(1, rows), *args, **kwargs)
            handle.remove()
            return x.scatter(1, rows, done)

        block.forward = forward
    return dense


@GRAD
@pytest.mark.parametrize("rescale", ["mlp", "none"])
def test_a_routed_model_is_diffusers_blocks_on_the_kept_tokens(tiny, model, rescale, grad):
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    tiny.route(model, 0.3, rescale=rescale, overrides={1: 0.8})
    expected = tiny.run(gather_block_scatter(dense, model, rescale), inputs)
    assert (tiny.run(model, inputs, grad) - expected).abs().max() <= 1e-6 * expected.abs().max()


@GRAD
@pytest.mark.parametrize(("timestep", "region"), EDGES)
def test_kept_tokens_per_layer_and_region_are_as_the_config_says(tiny, model, timestep, region, grad):
    tiny.route(model, 0.3, num_regions=4, overrides=TABLE)
    expected = [ceil_tenths(c) for c in (TABLE[0][region], 0.3, TABLE[-1][region])]
    kept = tiny.kept(model, tiny.inputs(model, timestep), grad)
    assert kept == [[k, k] for k in expected]


def test_a_region_ends_below_its_edge_for_timesteps_between_integers(tiny):
    model = tiny.route(tiny.pixart(), 0.3, num_regions=4, overrides=TABLE)
    for timestep, region in ((249.99, 0), (250.0, 1), (1000.0, 3), (-0.01, 0), (1000.01, 3)):
        kept = tiny.kept(model, tiny.inputs(model, [timestep, timestep]))
        assert kept[0] == [ceil_tenths(TABLE[0][region])] * 2


@GRAD
def test_full_compression_bypasses_every_block(tiny, model, grad):
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    for block in dense.transformer_blocks:
        block.forward = lambda x, *args, **kwargs: x
    tiny.route(model, 1.0)
    assert torch.equal(tiny.run(model, inputs, grad), tiny.run(dense, inputs, grad))
    assert tiny.kept(model, inputs) == [[0, 0]] * tiny.layers


@GRAD
def test_a_bypassed_block_calls_none_of_its_modules(tiny, model, grad):
    calls = []
    for block in tiny.route(model, 1.0).transformer_blocks:
        for module in (block.attn1, block.ff):
            module.register_forward_hook(lambda module, args, output: calls.append(module))
    tiny.run(model, tiny.inputs(model), grad)
    assert calls == []


@GRAD
def test_tokens_not_kept_leave_a_block_bit_equal(tiny, model, grad):
    tiny.route(model, 0.6)
    seen = []
    block = model.transformer_blocks[1]
    block.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with record_routing(model) as log:
        tiny.run(model, tiny.inputs(model), grad)
    (x, out), kept = seen[0], log[1].kept()
    assert torch.equal(out[~kept], x[~kept])
    assert (out[kept] != x[kept]).any(dim=1).all()


@GRAD
def test_mixed_timesteps_in_a_batch_equal_one_run_per_sample(tiny, model, grad):
    tiny.route(model, 0.3, num_regions=4, overrides=TABLE)
    times = [900, 10, 300, 510, 12]
    inputs = tiny.inputs(model, times, batch=len(times))
    assert tiny.kept(model, inputs, grad) == [[39, 58, 52, 45, 58], [45] * 5, [0, 32, 26, 20, 32]]
    together = tiny.run(model, inputs, grad)
    for b in range(len(times)):
        one = {k: v[b : b + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        assert (tiny.run(model, one, grad) - together[b]).abs().max() <= 1e-6 * together.abs().max()


@GRAD
def test_a_missing_timestep_is_a_named_error(tiny, model, grad):
    tiny.route(model, num_regions=2)
    inputs = tiny.inputs(model)
    inputs.pop("timestep")
    with pytest.raises(ValueError, match="timestep must be given"):
        tiny.run(model, inputs, grad)


def test_a_timestep_that_is_no_number_is_a_named_error(tiny):
    model = tiny.route(tiny.pixart(), num_regions=2)
    with pytest.raises(ValueError, match="timestep.*nan"):
        tiny.run(model, tiny.inputs(model, [500.0, float("nan")]))


@pytest.mark.parametrize("timestep", [-1.5, 1001.5, 0.5 * 2**20])
def test_a_timestep_outside_of_the_units_is_a_named_error(tiny, model, timestep):
    tiny.route(model, num_regions=2)
    with pytest.raises(ValueError, match=r"timestep=.* is outside of 0..1000, .*timestep_units="):
        tiny.run(model, tiny.inputs(model, [500.0, timestep]))


def test_one_region_reads_no_timestep(tiny, model):
    tiny.route(model, 0.5)
    inputs = tiny.inputs(model)

    class Unreadable(torch.Tensor):
        def tolist(self):
            raise AssertionError("a host sync in the middle of inference")

        item = tolist

    inputs["timestep"] = inputs["timestep"].as_subclass(Unreadable)
    tiny.run(model, inputs)


def test_a_call_follows_a_change_of_counts_from_regions_to_none_and_back(tiny, model):
    tiny.route(model, 0.3, num_regions=4, overrides=TABLE)
    late = tiny.inputs(model, 900)
    assert tiny.kept(model, late)[0] == [39, 39]
    apply_diffratio(model, DiffRatioConfig(0.5))
    assert tiny.kept(model, late) == [[32, 32]] * tiny.layers
    tiny.run(model, late)
    apply_diffratio(model, DiffRatioConfig(0.3, num_regions=4, overrides=TABLE))
    assert tiny.kept(model, late)[0] == [39, 39]


def test_twenty_steps_of_dpm_solver_spend_five_in_each_of_four_regions(tiny):
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    model = tiny.route(tiny.pixart(), 0.3, num_regions=4, overrides=TABLE)
    inputs, kept = tiny.inputs(model), []
    for timestep in scheduler.timesteps:
        # Pipelines expand a scheduler's scalar to the batch.
        kept += tiny.kept(model, inputs | {"timestep": timestep.expand(2)})[:1]
    assert kept == [[ceil_tenths(c)] * 2 for c in reversed(TABLE[0]) for _ in range(5)]


def test_a_recording_holds_layer_timestep_and_a_mask_per_sample(tiny, model):
    tiny.route(model, 0.5)
    with record_routing(model) as log:
        tiny.run(model, tiny.inputs(model, 321))
        tiny.run(model, tiny.inputs(model, [1, 2]))
    assert [entry.layer for entry in log] == [0, 1, 2] * 2
    assert [entry.timestep for entry in log] == [321] * 3 + [None] * 3
    assert log[3].timesteps == [1, 2]
    tiny.run(model, tiny.inputs(model))
    assert len(log) == 6
    assert log[0].kept().shape == (2, 64)
    assert not torch.equal(log[0].kept()[0], log[0].kept()[1])


def test_recording_changes_no_bit(tiny, model):
    tiny.route(model, 0.4, num_regions=4, overrides=TABLE)
    inputs = tiny.inputs(model, [10, 900])
    expected = tiny.run(model, inputs)
    with record_routing(model):
        assert torch.equal(tiny.run(model, inputs), expected)


@GRAD
def test_a_recording_holds_the_logits_that_decided(tiny, model, grad):
    tiny.route(model, 0.5)
    with record_routing(model) as log:
        tiny.run(model, tiny.inputs(model), grad)
    for entry, layer in zip(log, routed_layers(model), strict=True):
        assert entry.logits.shape == (2, 64) and not entry.logits.requires_grad
        worst = entry.scores().masked_fill(~entry.kept(), 1).amin(1)
        assert (worst >= entry.scores().masked_fill(entry.kept(), 0).amax(1)).all()
        assert entry.layer == layer.number
    tiny.route(model, 1.0)
    with record_routing(model) as log:
        tiny.run(model, tiny.inputs(model), grad)
    assert all(entry.logits is None and entry.scores().isnan().all() for entry in log)


def test_rounding_down_keeps_one_token_less(model, tiny, tmp_path):
    """Of 64 tokens at 20 %, with one bin and with two, and after an adapter was saved and loaded."""
    inputs = tiny.inputs(model)
    tiny.route(model, 0.2, rounding="floor")
    assert tiny.kept(model, inputs) == [[51, 51]] * 3
    assert summary(model, tokens=1024)[0].kept_tokens == (819,)
    save_diffratio(model, tmp_path)
    load_diffratio(remove_diffratio(model), tmp_path)
    assert tiny.kept(model, inputs) == [[51, 51]] * 3
    learn_ratios(model)
    with torch.no_grad():
        model.diffratio_ratios.ratios.fill_(0.75)
    model.diffratio_ratios.invalidate()
    assert tiny.kept(model, inputs, grad=True) == [[51, 51]] * 3  # the larger of the bins .7 and .8
