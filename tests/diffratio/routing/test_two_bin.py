"""Training forward with learned ratios: by weights and by modules it is the reference's blend of two bins."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, inject_adapter_in_model

from diffratio import learn_ratios, record_routing, summary
from diffratio.routing import forward
from diffratio_kernels import kept_tokens, reference
from diffratio_kernels.blocks.products import run_of
from diffratio_kernels.blocks.routed import routed

LORA = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
TABLE = [[0.93, 0.55], [1.0, 0.3], [0.4, 0.37]]  # between bins, on bins, on the smallest one


def learn(tiny, model, values=TABLE, **settings):
    tiny.route(model, num_regions=len(values[0]))
    table = learn_ratios(model, **settings)
    with torch.no_grad():
        table.ratios.copy_(torch.tensor(values))
    return model


@pytest.fixture
def passes(monkeypatch):
    """Of every training pass of a block: which bin it ran without a backward."""
    taken, run = [], forward.two_bin

    def note(call, rows, bins, scores, how, forward_only):
        taken.append(forward_only)
        return run(call, rows, bins, scores, how, forward_only)

    monkeypatch.setattr(forward, "two_bin", note)
    return taken


WAYS = pytest.mark.parametrize("way", ["weights", "modules"])


def call_modules(model):
    """From now on the blocks' attentions and MLPs are called as modules: hooks may do anything."""
    parts = [part for block in model.transformer_blocks for part in (block.attn1, block.attn2, block.ff)]
    return [part.register_forward_hook(lambda *_: None) for part in parts if part is not None]


def take_off(hooks):
    for hook in hooks:
        hook.remove()


def by_the_reference(layer, call, args, kwargs):
    """A block's training pass by `reference.two_bin_block`, from the block's own parameters."""
    image, keep_small, keep_large, weight = bins_now(layer, call, args, kwargs)
    arguments = {"num_heads": image.attention.heads, "eps": image.eps, "mlp_eps": image.mlp_eps}
    linears = {"out": image.attention.out, "fc1": image.mlp.fc1, "fc2": image.mlp.fc2}
    cross = call.after_attention
    if cross is not None:
        linears |= {"cross_q": cross.query, "cross_out": cross.out}
        arguments |= {"context_kv": cross.keys_values, "context_lengths": cross.lengths}
    for name, linear in linears.items():
        arguments |= {f"{name}_weight": linear.weight, f"{name}_bias": linear.bias}
    arguments["qkv_weight"] = torch.cat([part.weight for part in image.attention.project])
    arguments["qkv_bias"] = torch.cat([part.bias for part in image.attention.project])
    rescale = layer.model.rescale
    arguments |= {"rescale": rescale.mode, "score_scale": rescale.score_scale}
    x, router = image.tokens, layer.block.diffratio.router_weight
    return reference.two_bin_block(x, router, keep_small, keep_large, weight, image.modulation, **arguments)


def by_two_passes(layer, call, args, kwargs):
    """w F(x, k_large) + (1 - w) F(x, k_small), each as a block of one bin: whatever its modules are."""
    image, *keeps, weight = bins_now(layer, call, args, kwargs)
    run, ends = run_of("mod_block", "auto", "auto", image.tokens, direct=False), []
    for keep in keeps:
        rows, logits = forward._select(layer, run, call, keep)
        ends.append(routed(call, rows, logits, layer.model.rescale, run))
    return torch.lerp(*ends, weight.to(ends[0].dtype)[:, None, None])


def bins_now(layer, call, args, kwargs):
    image, table = call.image, layer.model.ratios
    batch, tokens = image.tokens.shape[:2]
    regions = layer.model.regions_now(layer, batch, args, kwargs)
    small, large, weight = table.pair(layer.row, regions)
    keep_small, keep_large = ([kept_tokens(n, tokens) for n in bin] for bin in (small, large))
    return image, keep_small, keep_large, weight


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
@WAYS
def test_both_ways_are_two_separate_passes_in_values_and_gradients(
    tiny, model, passes, way, timestep, monkeypatch
):
    model = learn(tiny, model.double())
    inputs = tiny.inputs(model, timestep)
    hooks = call_modules(model) if way == "modules" else []
    actual = gradients(tiny, model, inputs)
    assert len(passes) == tiny.layers
    take_off(hooks)
    monkeypatch.setattr(forward, "_two_bins", by_the_reference)
    expected = gradients(tiny, model, inputs)
    reached = expected["diffratio_ratios.ratios"].abs().sum(0) > 0
    assert reached.tolist() == [timestep != 900, timestep != 100]
    assert_close(actual, expected)


@pytest.mark.parametrize("rescale", ["residual", "output", "none"])
@WAYS
def test_every_rescale_is_the_reference(tiny, way, rescale, monkeypatch):
    model = tiny.route(tiny.dit().double(), rescale=rescale)
    learn_ratios(model, start=0.63)
    hooks = call_modules(model) if way == "modules" else []
    inputs = tiny.inputs(model)
    actual = gradients(tiny, model, inputs)
    take_off(hooks)
    monkeypatch.setattr(forward, "_two_bins", by_the_reference)
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
    monkeypatch.setattr(forward, "_two_bins", by_the_reference)
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


def test_lora_layers_give_the_gradients_of_two_passes(tiny, model, monkeypatch):
    model = lora(learn(tiny, model)).double()
    inputs = tiny.inputs(model, [900, 100])
    packed = gradients(tiny, model, inputs)
    monkeypatch.setattr(forward, "_two_bins", by_two_passes)
    assert any("lora_A" in name for name in packed)
    assert_close(packed, gradients(tiny, model, inputs))


def hooked(name):
    """A change of the model after which its blocks' modules of that name do more than their class says."""

    def change(model):
        for block in model.transformer_blocks:
            block.get_submodule(name).register_forward_hook(lambda module, args, output: _scaled(output))

    return change


def _scaled(output):
    if isinstance(output, tuple):  # a router's: index, cumulative counts, logits
        return tuple(map(_scaled, output))
    return output * 1.25 if output.is_floating_point() else output


FOREIGN = {
    "a peft.tuners.lora.layer.Linear": lambda m: lora(m, use_dora=True),
    "attn1.to_q: it carries hooks": hooked("attn1.to_q"),
    "ff.net.2: it carries hooks": hooked("ff.net.2"),
    "ff: it carries hooks": hooked("ff"),
    "attn1: its processor is AttnProcessor": lambda m: [
        block.attn1.set_processor(AttnProcessor()) for block in m.transformer_blocks
    ],
    "diffratio: it carries hooks": hooked("diffratio"),
}


@pytest.mark.parametrize("reason", FOREIGN)
def test_what_weights_do_not_tell_is_called_and_gives_the_gradients_of_two_passes(
    tiny, model, reason, monkeypatch
):
    model = learn(tiny, model)
    FOREIGN[reason](model)
    model.double()
    inputs = tiny.inputs(model, [900, 100])
    assert all(reason in row.reason for row in summary(model))
    packed = gradients(tiny, model, inputs)
    monkeypatch.setattr(forward, "_two_bins", by_two_passes)
    assert_close(packed, gradients(tiny, model, inputs))


def test_lora_with_dropout_drops(tiny):
    model = lora(learn(tiny, tiny.dit()), lora_dropout=0.5)
    model.transformer_blocks.train()
    inputs = tiny.inputs(model, 100)
    first, second = (tiny.run(model, inputs, grad=True) for _ in range(2))
    assert first.isfinite().all() and not torch.equal(first, second)


@WAYS
def test_a_bin_without_weight_gets_no_backward_and_the_ratio_its_gradient(tiny, passes, way):
    """At the start every ratio is 1.0: the bin of 0.9 has weight 0, on the smallest bin the other one has."""
    model = learn(tiny, tiny.dit(), [[1.0, 0.95], [0.3, 0.3], [0.6, 1.0]])
    if way == "modules":
        call_modules(model)
    for timestep, expected in ((100, ["small", "large", "small"]), (900, ["none", "large", "small"])):
        passes.clear()
        found = gradients(tiny, model, tiny.inputs(model, timestep))
        assert passes == expected
        region = int(timestep == 900)
        assert (found["diffratio_ratios.ratios"][:, region] != 0).all()
    passes.clear()
    gradients(tiny, model, tiny.inputs(model, [100, 900]))
    assert passes == ["none", "large", "small"]


@WAYS
def test_rows_that_neither_bin_keeps_come_back_in_the_same_bits(tiny, way):
    model = learn(tiny, tiny.dit(num_layers=1), [[0.47]])
    if way == "modules":
        call_modules(model)
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
@WAYS
def test_bins_at_their_edges(tiny, bins, ratio, tokens, way, monkeypatch):
    model = learn(tiny, tiny.dit(num_layers=1).double(), [[ratio]], bins=bins, start=bins[0] / 10)
    hooks = call_modules(model) if way == "modules" else []
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
    take_off(hooks)
    monkeypatch.setattr(forward, "_two_bins", by_the_reference)
    assert_close(actual, run())


def test_without_a_gradient_in_eval_mode_the_nearest_bin_runs_alone(tiny, model, passes):
    """As after freezing: the same bits; in training mode both bins run, with and without a gradient."""
    model = learn(tiny, model, [[0.96, 0.34], [0.7, 0.44], [0.85, 1.0]])
    inputs = tiny.inputs(model, [900, 100])
    assert tiny.kept(model, inputs) == [[20, 64], [26, 45], [64, 58]]
    tiny.run(model, inputs)
    assert passes == []
    model.train()
    tiny.run(model, inputs)
    assert len(passes) == tiny.layers
    model.eval()
    tiny.run(model, inputs, grad=True)
    assert len(passes) == 2 * tiny.layers


def test_training_mode_at_exact_bins_is_the_single_bin_pass(tiny, model):
    """A ratio on a bin gives that bin's weight 1 and the other's 0, and the same values up to rounding."""
    model = learn(tiny, model, [[0.9], [0.5], [0.3]])
    inputs = tiny.inputs(model)
    expected = tiny.run(model, inputs)
    actual = tiny.run(model.train(), inputs)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_autocast_trains_in_bfloat16(tiny, model, passes):
    model = learn(tiny, model)
    inputs = tiny.inputs(model, [900, 100])
    expected = tiny.run(model, inputs, grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tiny.run(model, inputs, grad=True)
    out.float().square().mean().backward()
    assert (out - expected).abs().max() < 0.1 * expected.abs().max()
    assert model.diffratio_ratios.ratios.grad.abs().min() > 0
    assert len(passes) == 2 * tiny.layers


def test_another_batch_than_the_timesteps_is_a_named_error(tiny):
    model = learn(tiny, tiny.pixart(num_layers=1), [[0.9, 0.5]])
    model.adaln_single(torch.tensor([900, 100]), hidden_dtype=torch.float32)
    x, text, timestep = torch.randn(3, 12, 32), torch.randn(3, 5, 32), torch.randn(3, 192)
    with pytest.raises(
        ValueError, match="timestep holds 2 values in several regions, the blocks get a batch of 3"
    ):
        model.transformer_blocks[0](x, None, text, None, timestep)


def test_a_block_that_is_given_its_timestep_takes_it_for_its_regions(tiny):
    """DiT's are: nothing of another call is left in the way."""
    model = learn(tiny, tiny.dit(num_layers=1), [[0.9, 0.5]])
    tiny.run(model, tiny.inputs(model, [900, 100]), grad=True)
    three = {"timestep": torch.tensor([5, 5, 900]), "class_labels": torch.tensor([1, 2, 3])}
    with record_routing(model) as log:
        model.transformer_blocks[0](torch.randn(3, 10, 32), **three)
    assert log[0].kept().sum(1).tolist() == [9, 9, 5]


def test_a_compiled_model_trains_its_ratios_outside_of_the_graph(tiny):
    model = learn(tiny, tiny.dit(num_layers=1), [[0.55]])
    inputs = tiny.inputs(model)
    expected = tiny.run(model, inputs, grad=True)
    compiled = torch.compile(model, backend="eager")
    actual = tiny.run(compiled, inputs, grad=True)
    actual.sum().backward()
    assert torch.allclose(actual, expected, atol=1e-5)
    assert model.diffratio_ratios.ratios.grad.abs().sum() > 0
