"""Training forward with learned ratios: packed and in two passes it is the reference's blend of two bins."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, inject_adapter_in_model

from diffratio import learn_ratios, record_routing, summary, two_bin
from diffratio.integrations.text_mask import _readable
from diffratio.one_matrix import concatenated
from diffratio.patch import routed_blocks
from diffratio_kernels import kept_tokens, reference

LORA = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
TABLE = [[0.93, 0.55], [1.0, 0.3], [0.4, 0.37]]  # between bins, on bins, on the smallest one


def learn(tiny, model, values=TABLE, **settings):
    tiny.route(model, num_regions=len(values[0]))
    table = learn_ratios(model, **settings)
    with torch.no_grad():
        table.ratios.copy_(torch.tensor(values))
    return model


@pytest.fixture
def ways(monkeypatch):
    """Which way each block's training pass took, and which bin it ran without a backward."""
    taken = []
    for name in ("_packed", "_two_passes"):
        run = getattr(two_bin, name)

        def note(*args, run=run, name=name):
            taken.append((name, args[-2]))
            return run(*args)

        monkeypatch.setattr(two_bin, name, note)
    return taken


def force_two_passes(monkeypatch, model):
    spec = type(routed_blocks(model)[0]._diffratio.spec)
    monkeypatch.setattr(spec, "why_not_linears", lambda *_: "the test says so")


def by_the_reference(state, inputs, given, options):
    """A block's training pass by `reference.two_bin_block`, from the block's own parameters."""
    block, x, regions = state.block, inputs.x, state.plan.regions
    small, large, weight = state.plan.ratios.pair(state.layer, regions * (len(inputs.x) // len(regions)))
    keep = ([kept_tokens(n, x.shape[1]) for n in tenths] for tenths in (small, large))
    arguments = state.spec.fused_arguments(block, inputs, *concatenated(state.spec.qkv(block)))
    return reference.two_bin_block(
        x, block.diffratio.router_weight, *keep, weight, inputs.modulation, **options, **arguments
    )


def gradients(tiny, model, inputs):
    model.zero_grad()
    out = tiny.run(model, inputs, grad=True)
    out.square().sum().backward()
    return {"": out.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(actual, expected):
    """To 1e-11 where parameters are fp64, to fp32's rounding where they are fp32: routers and ratios."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        tolerance = 1e-11 if gradient.dtype == torch.float64 else 1e-6
        assert (actual[name] - gradient).abs().max() <= tolerance * gradient.abs().max() + 1e-14, name


@pytest.mark.parametrize("timestep", [100, 900, [900, 100]], ids=str)
@pytest.mark.parametrize("way", ["_packed", "_two_passes"])
def test_both_ways_are_two_separate_passes_in_values_and_gradients(
    tiny, model, ways, way, timestep, monkeypatch
):
    model = learn(tiny, model.double())
    inputs = tiny.inputs(model, timestep)
    if way == "_two_passes":
        force_two_passes(monkeypatch, model)
    actual = gradients(tiny, model, inputs)
    assert [name for name, _ in ways] == [way] * tiny.layers
    monkeypatch.setattr("diffratio.routed.two_bin_blocks", by_the_reference)
    expected = gradients(tiny, model, inputs)
    reached = expected["diffratio_ratios.ratios"].abs().sum(0) > 0
    assert reached.tolist() == [timestep != 900, timestep != 100]
    assert_close(actual, expected)


@pytest.mark.parametrize("rescale", ["residual", "output", "none"])
@pytest.mark.parametrize("way", ["_packed", "_two_passes"])
def test_every_rescale_is_the_reference(tiny, way, rescale, monkeypatch):
    model = tiny.route(tiny.dit().double(), rescale=rescale)
    learn_ratios(model, start=0.63)
    if way == "_two_passes":
        force_two_passes(monkeypatch, model)
    inputs = tiny.inputs(model)
    actual = gradients(tiny, model, inputs)
    monkeypatch.setattr("diffratio.routed.two_bin_blocks", by_the_reference)
    expected = gradients(tiny, model, inputs)
    if rescale == "none":  # the score is not used: the packed pass gives routers a gradient of zeros
        actual = {n: g for n, g in actual.items() if "router" not in n}
        expected = {n: g for n, g in expected.items() if "router" not in n}
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "values", [[[-0.9], [0.1], [3.0]], [[0.2], [0.12], [0.28]]], ids=["clamped", "below"]
)
def test_faithful_weights_extrapolate_and_its_clamp_ends_a_gradient(tiny, values, monkeypatch):
    """Weights outside of [0, 1] in both ways; a ratio beyond .1 ... 1 gets a gradient of exactly zero."""
    model = learn(tiny, tiny.dit().double(), values, mode="faithful")
    inputs = tiny.inputs(model)
    actual = gradients(tiny, model, inputs)
    monkeypatch.setattr("diffratio.routed.two_bin_blocks", by_the_reference)
    assert_close(actual, gradients(tiny, model, inputs))
    dead = [value[0] not in (0.1, 0.2, 0.12, 0.28) for value in values]
    assert (actual["diffratio_ratios.ratios"][:, 0] == 0).tolist() == dead
    assert model.diffratio_ratios.dead() == sum(dead)


def lora(model, **settings):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=LORA, **settings), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_lora_layers_run_packed_and_give_the_gradients_of_two_passes(tiny, model, ways, monkeypatch):
    model = lora(learn(tiny, model)).double()
    inputs = tiny.inputs(model, [900, 100])
    packed = gradients(tiny, model, inputs)
    force_two_passes(monkeypatch, model)
    separate = gradients(tiny, model, inputs)
    assert [name for name, _ in ways] == ["_packed"] * tiny.layers + ["_two_passes"] * tiny.layers
    assert any("lora_A" in name for name in packed)
    assert_close(packed, separate)


FALLBACKS = {
    "LoRA with dropout": lambda m: lora(m, lora_dropout=0.1),
    "LoRA with a variant or a bias": lambda m: lora(m, use_dora=True),
    "it carries hooks": lambda m: [
        block.attn1.to_q.register_forward_hook(lambda *_: None) for block in m.transformer_blocks
    ],
    "attn1: its processor is AttnProcessor": lambda m: [
        block.attn1.set_processor(AttnProcessor()) for block in m.transformer_blocks
    ],
    "diffratio: it carries hooks": lambda m: [
        block.diffratio.register_forward_hook(lambda *_: None) for block in m.transformer_blocks
    ],
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_is_not_a_chain_of_affine_layers_runs_in_two_passes_and_says_why(tiny, ways, reason):
    model = learn(tiny, tiny.dit())
    FALLBACKS[reason](model)
    assert tiny.run(model, tiny.inputs(model, 100), grad=True).isfinite().all()
    assert [name for name, _ in ways] == ["_two_passes"] * tiny.layers
    for row in summary(model):
        assert row.training.startswith("two passes") and reason in row.training


@pytest.mark.parametrize("way", ["_packed", "_two_passes"])
def test_a_bin_without_weight_gets_no_backward_and_the_ratio_its_gradient(tiny, ways, way, monkeypatch):
    """At the start every ratio is 1.0: the bin of 0.9 has weight 0, on the smallest bin the other one has."""
    model = learn(tiny, tiny.dit(), [[1.0, 0.95], [0.3, 0.3], [0.6, 1.0]])
    if way == "_two_passes":
        force_two_passes(monkeypatch, model)
    for timestep, expected in ((100, ["small", "large", "small"]), (900, ["none", "large", "small"])):
        ways.clear()
        found = gradients(tiny, model, tiny.inputs(model, timestep))
        assert ways == [(way, bin) for bin in expected]
        region = int(timestep == 900)
        assert (found["diffratio_ratios.ratios"][:, region] != 0).all()
    ways.clear()
    gradients(tiny, model, tiny.inputs(model, [100, 900]))
    assert [bin for _, bin in ways] == ["none", "large", "small"]


@pytest.mark.parametrize("way", ["_packed", "_two_passes"])
def test_rows_that_neither_bin_keeps_come_back_in_the_same_bits(tiny, way, monkeypatch):
    model = learn(tiny, tiny.dit(num_layers=1), [[0.47]])
    if way == "_two_passes":
        force_two_passes(monkeypatch, model)
    block, x = model.transformer_blocks[0], torch.randn(2, 40, 32)
    x[:, 3], x[0, 5], x[1, 7] = -0.0, float("nan"), float("inf")
    x[:, 11:20] = 0.1 * x[:, 11:20] - 5 * block.diffratio.router_weight.detach()
    with record_routing(model) as log:
        out = block(x, timestep=torch.tensor([5, 5]), class_labels=torch.tensor([1, 2]))
    kept = log[0].kept()
    assert kept.sum(1).tolist() == [20, 20] and not kept[0, 5]
    assert torch.equal(out[~kept].view(torch.int32), x[~kept].view(torch.int32))
    assert not torch.equal(out[kept], x[kept])


@pytest.mark.parametrize(
    ("bins", "ratio", "tokens"),
    [((10, 0), 0.4, 12), ((3, 0), 0.2, 12), ((10, 9), 0.95, 3), ((10, 5), 0.6, 1)],
    ids=["bypass and dense", "bypass", "equal after rounding", "one token"],
)
@pytest.mark.parametrize("way", ["_packed", "_two_passes"])
def test_bins_at_their_edges(tiny, bins, ratio, tokens, way, monkeypatch):
    model = learn(tiny, tiny.dit(num_layers=1).double(), [[ratio]], bins=bins, start=bins[0] / 10)
    if way == "_two_passes":
        force_two_passes(monkeypatch, model)
    block = model.transformer_blocks[0]

    def run():
        x = torch.randn(2, tokens, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        model.zero_grad()
        out = block(x, timestep=torch.tensor([5, 5]), class_labels=torch.tensor([1, 2]))
        out.square().sum().backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {"": out.detach(), "x": x.grad} | named

    actual = run()
    monkeypatch.setattr("diffratio.routed.two_bin_blocks", by_the_reference)
    assert_close(actual, run())


def test_without_a_gradient_in_eval_mode_the_nearest_bin_runs_alone(tiny, model, ways):
    """As after freezing: the same bits; in training mode both bins run, with and without a gradient."""
    model = learn(tiny, model, [[0.96, 0.34], [0.7, 0.44], [0.85, 1.0]])
    inputs = tiny.inputs(model, [900, 100])
    assert tiny.kept(model, inputs) == [[20, 64], [26, 45], [64, 58]]
    tiny.run(model, inputs)
    assert ways == []
    model.train()
    tiny.run(model, inputs)
    assert len(ways) == tiny.layers
    model.eval()
    tiny.run(model, inputs, grad=True)
    assert len(ways) == 2 * tiny.layers


def test_training_mode_at_exact_bins_is_the_single_bin_pass(tiny, model):
    """A ratio on a bin gives that bin's weight 1 and the other's 0, and the same values up to rounding."""
    model = learn(tiny, model, [[0.9], [0.5], [0.3]])
    inputs = tiny.inputs(model)
    expected = tiny.run(model, inputs)
    actual = tiny.run(model.train(), inputs)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_autocast_trains_in_bfloat16(tiny, model, ways):
    model = learn(tiny, model)
    inputs = tiny.inputs(model, [900, 100])
    expected = tiny.run(model, inputs, grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tiny.run(model, inputs, grad=True)
    out.float().square().mean().backward()
    assert (out - expected).abs().max() < 0.1 * expected.abs().max()
    assert model.diffratio_ratios.ratios.grad.abs().min() > 0
    assert {name for name, _ in ways} == {"_packed"}


def test_masks_on_a_gpu_are_read_in_training_only():
    """Sampling must not wait, nor fall out of a CUDA graph; a training step waits once for all blocks."""
    with torch.no_grad():
        assert _readable(torch.device("cpu")) and not _readable(torch.device("cuda"))
    assert _readable(torch.device("cuda"))


def test_another_batch_than_the_timesteps_is_a_named_error(tiny):
    model = learn(tiny, tiny.dit(num_layers=1), [[0.9, 0.5]])
    tiny.run(model, tiny.inputs(model, [900, 100]), grad=True)
    three = {"timestep": torch.full((3,), 5), "class_labels": torch.tensor([1, 2, 3])}
    with pytest.raises(
        ValueError, match="timestep holds 2 values in several regions, the blocks get a batch of 3"
    ):
        model.transformer_blocks[0](torch.randn(3, 12, 32), **three)


def test_a_compiled_model_trains_its_ratios_outside_of_the_graph(tiny):
    model = learn(tiny, tiny.dit(num_layers=1), [[0.55]])
    inputs = tiny.inputs(model)
    expected = tiny.run(model, inputs, grad=True)
    compiled = torch.compile(model, backend="eager")
    actual = tiny.run(compiled, inputs, grad=True)
    actual.sum().backward()
    assert torch.allclose(actual, expected, atol=1e-5)
    assert model.diffratio_ratios.ratios.grad.abs().sum() > 0
