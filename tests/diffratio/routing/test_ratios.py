"""learn_ratios, diffratio_loss, freeze_ratios: one table on the model, and no trace of it afterwards."""

import copy

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from peft import LoraConfig, get_peft_model

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    diffratio_loss,
    disable_diffratio,
    freeze_ratios,
    learn_ratios,
    load_diffratio,
    remove_diffratio,
    save_diffratio,
)
from diffratio.data.digits import load_split, make_class_tokens
from diffratio.diffusion import noise_schedule
from diffratio.families import register_block_spec
from diffratio.families.basic_transformer import BasicTransformerSpec
from diffratio.routing.apply import _timestep_units
from diffratio.routing.find import routed_blocks, routed_layers
from diffratio.routing.ratios import table_of
from diffratio.routing.state import region
from diffratio.toy import DIGITS_LT30, PRETRAINED, load_pixart
from diffratio_kernels.blocks.ratio_table import RatioTable


def fill(table, values):
    with torch.no_grad():
        table.ratios.copy_(torch.tensor(values))


def test_the_table_is_one_module_and_a_removed_model_is_as_before(tiny, model):
    before, inputs = tiny.snapshot(model), tiny.inputs(model)
    dense = tiny.run(model, inputs)
    apply_diffratio(model, DiffRatioConfig(num_regions=4))
    names = set(model.state_dict())
    table = learn_ratios(model)
    assert table is model.diffratio_ratios and table is table_of(model)
    assert table.ratios.shape == (tiny.layers, 4)
    assert set(model.state_dict()) - names == {"diffratio_ratios.ratios"}
    remove_diffratio(model)
    assert tiny.snapshot(model) == before
    assert torch.equal(tiny.run(model, inputs), dense)


def test_a_disabled_model_runs_dense_with_and_without_a_gradient(tiny, model):
    inputs = tiny.inputs(model)
    for grad in (False, True):
        dense = tiny.run(model, inputs, grad)
        learning = learn_ratios(tiny.route(copied := copy.deepcopy(model)), start=0.5)
        assert learning is copied.diffratio_ratios
        assert torch.equal(tiny.run(disable_diffratio(copied), inputs, grad), dense)


def test_a_copy_learns_on_its_own(tiny, model):
    """As the copy of a moving average does."""
    learn_ratios(tiny.route(model), start=0.8)
    average, inputs = copy.deepcopy(model), tiny.inputs(model)
    assert average._diffratio_model.ratios is average.diffratio_ratios is not model.diffratio_ratios
    fill(average.diffratio_ratios, [[0.4]] * tiny.layers)
    assert tiny.kept(average, inputs) == [[26, 26]] * tiny.layers
    assert tiny.kept(model, inputs) == [[52, 52]] * tiny.layers
    tiny.run(average, inputs, grad=True).sum().backward()
    assert model.diffratio_ratios.ratios.grad is None
    average.load_state_dict(model.state_dict())
    assert tiny.kept(average, inputs) == [[52, 52]] * tiny.layers


def test_the_host_reads_the_table_once_per_step_and_not_per_block(tiny, model, monkeypatch):
    table = learn_ratios(tiny.route(model.train(), num_regions=2), start=0.8)
    copies, decide = [], RatioTable._decide
    monkeypatch.setattr(RatioTable, "_decide", lambda self, r: copies.append(1) or decide(self, r))
    for step in range(1, 4):
        for timestep in ([900, 100], 500):  # two micro-batches
            loss = tiny.run(model, tiny.inputs(model, timestep), grad=True).square().mean()
            (loss + diffratio_loss(model, 0.3, 1.0)).backward()
        assert len(copies) == step
        with torch.no_grad():
            table.ratios -= 1e-3 * table.ratios.grad.sign()


def test_a_table_that_was_read_in_inference_mode_trains(tiny, model):
    learn_ratios(tiny.route(model, num_regions=2), start=0.75)
    inputs = tiny.inputs(model, [100, 900])
    with torch.inference_mode():
        model.train()(**inputs)
    (tiny.run(model, inputs, grad=True).square().mean() + diffratio_loss(model, 0.5, 1.0)).backward()
    assert table_of(model).ratios.grad.abs().min() > 0


def test_an_empty_batch_with_regions_is_empty(tiny):
    model = tiny.route(tiny.dit(), num_regions=2)
    inputs = tiny.inputs(model, [100, 900])
    nothing = {name: t[:0] if isinstance(t, torch.Tensor) else t for name, t in inputs.items()}
    assert tiny.run(model, nothing).shape[0] == 0


def test_the_ratio_loss_is_that_of_the_last_batch(tiny, model):
    table = learn_ratios(tiny.route(model, num_regions=2))
    fill(table, [[0.9, 0.5], [0.7, 0.3], [0.8, 0.4]])
    for timestep, mean in ((100, 0.8), (900, 0.4), ([100, 900], 0.6)):
        tiny.run(model, tiny.inputs(model, timestep), grad=True)
        loss = diffratio_loss(model, 0.3, 2.0)
        assert loss.item() == pytest.approx(2 * (mean - 0.7) ** 2)
        (slope,) = torch.autograd.grad(loss, table.ratios)
        share = torch.tensor([float(timestep != 900), float(timestep != 100)])
        expected = 2 * 2.0 * (mean - 0.7) * share / share.sum() / tiny.layers
        assert torch.allclose(slope, expected.expand(3, 2), atol=1e-6)


def test_freezing_writes_the_nearest_bins_into_the_config(tiny, model):
    fill(learn_ratios(tiny.route(model, num_regions=2)), [[0.96, 0.34], [0.7, 0.44], [0.85, 1.0]])
    inputs = tiny.inputs(model, [900, 100])
    expected = tiny.run(model, inputs)
    assert freeze_ratios(model) == [[10, 3], [7, 4], [9, 10]]
    assert torch.equal(tiny.run(model, inputs), expected)
    shared = model._diffratio_model
    assert shared.config.overrides == {0: [0.0, 0.7], 1: [0.3, 0.6], 2: [0.1, 0.0]}
    assert shared.ratios is None and not hasattr(model, "diffratio_ratios")
    again = DiffRatioConfig.from_dict(shared.config.to_dict())
    assert again.kept_tenths(3) == [[10, 3], [7, 4], [9, 10]]
    learn_ratios(model)


def test_one_region_freezes_to_plain_numbers(tiny, model):
    learn_ratios(tiny.route(model), bins=(10, 4, 0), start=1.0)
    fill(model.diffratio_ratios, [[0.1], [0.69], [0.71]])
    assert freeze_ratios(model) == [[0], [4], [10]]
    assert model._diffratio_model.config.overrides == {0: 1.0, 1: 0.6, 2: 0.0}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: learn_ratios(m), "learns its ratios already"),
        (lambda m: apply_diffratio(m, DiffRatioConfig()), "config: the model learns its ratios"),
        (lambda m: diffratio_loss(m, 1.3, 1.0), "target_compression=1.3 must be in 0..1"),
        (lambda m: diffratio_loss(m, float("nan"), 1.0), "target_compression=nan"),
        (lambda m: diffratio_loss(m, "0.3", 1.0), "target_compression='0.3'"),
        (lambda m: diffratio_loss(m, 0.3, -1.0), "weight=-1.0 must be finite and not negative"),
        (lambda m: diffratio_loss(m, 0.3, float("inf")), "weight=inf"),
    ],
)
def test_errors_of_a_learning_model_name_the_argument(tiny, call, text):
    model = tiny.dit()
    learn_ratios(tiny.route(model))
    with pytest.raises(ValueError, match=text):
        call(model)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (freeze_ratios, "learns no ratios"),
        (lambda m: diffratio_loss(m, 0.3, 1.0), "learns no ratios"),
        (lambda m: learn_ratios(m, mode="fast"), "mode='fast'"),
        (lambda m: learn_ratios(m, bins=(5,)), r"bins=\(5,\)"),
        (lambda m: learn_ratios(m, start=0.1), "start=0.1"),
    ],
)
def test_errors_of_a_plain_model_leave_it_plain(tiny, call, text):
    model = tiny.route(tiny.dit())
    before = tiny.snapshot(model)
    with pytest.raises(ValueError, match=text):
        call(model)
    assert tiny.snapshot(model) == before
    with pytest.raises(ValueError, match="has no diffratio blocks"):
        learn_ratios(tiny.dit())


@pytest.mark.parametrize(
    ("timestep", "regions", "units", "expected"),
    [
        (0, 10, "training", 0),
        (99, 10, "training", 0),
        (100, 10, "training", 1),
        (999, 10, "training", 9),
        (1000, 10, "training", 9),
        (-1, 4, "training", 0),
        (249.75, 4, "training", 0),
        (250.0, 4, "training", 1),
        (999, 1, "training", 0),
        (333, 3, "training", 0),
        (334, 3, "training", 1),
        (0.0, 4, "noise", 0),
        (1.0, 4, "noise", 3),
        (0.25, 4, "noise", 1),
        (0.2499, 4, "noise", 0),
        (0.999, 1000, "noise", 999),
        (-0.1, 4, "noise", 0),
        (1.2, 4, "noise", 3),
    ],
)
def test_regions_of_both_units(timestep, regions, units, expected):
    assert region(timestep, regions, units) == expected


def test_a_float32_noise_level_is_in_the_region_of_its_training_timestep():
    for regions in (4, 10, 100):
        for timestep in range(1000):
            level = (torch.tensor(timestep, dtype=torch.float32) / 1000).item()
            assert region(level, regions, "noise") == region(timestep, regions)


def test_a_family_with_noise_levels_finds_its_regions_by_its_spec(tiny, monkeypatch):
    monkeypatch.setattr(BasicTransformerSpec, "timestep_units", "noise")
    model = tiny.route(tiny.dit(), num_regions=2, overrides={0: [0.1, 0.8]})
    inputs = tiny.inputs(model)
    for level, kept in ((0.3, 58), (0.7, 13)):
        given = inputs | {"timestep": torch.full((2,), level)}
        assert tiny.kept(model, given)[0] == [kept] * 2
    monkeypatch.setattr(BasicTransformerSpec, "timestep_units", "sigma")
    with pytest.raises(ValueError, match="timestep_units='sigma' must be"):
        register_block_spec(PixArtTransformer2DModel, BasicTransformerSpec())


@torch.no_grad()
def digits_loss(model):
    """The v-MSE on 64 held-out digits, in training mode: at two bins where ratios are learned."""
    images, labels = (part[:64] for part in load_split("held_out"))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    timesteps, schedule = torch.linspace(0, 999, 64).long(), noise_schedule()
    noisy = schedule.add_noise(images, noise, timesteps)
    out = model.train()(noisy, encoder_hidden_states=make_class_tokens(0)[labels], timestep=timesteps).sample
    return (out - schedule.get_velocity(images, noise, timesteps)).square().mean().item()


def test_specs_that_disagree_about_units_are_an_error():
    specs = BasicTransformerSpec(), BasicTransformerSpec()
    specs[1].timestep_units = "noise"
    with pytest.raises(ValueError, match=r"disagree about timestep_units: \['noise', 'training'\]"):
        _timestep_units(specs, DiffRatioConfig())


def test_what_each_start_costs_at_step_0_on_the_demo():
    """With all tokens kept, a router of zeros and factor 2 sigmoid(0) is the dense model, to fp32's rounding;
    the identity start's small random routers move its loss by parts in ten thousand, the authors' start,
    which halves every MLP branch, raises it by more than half."""
    losses = {}
    for start in ("dense", "zeros", "identity", "faithful"):
        torch.manual_seed(0)
        model = load_pixart(PRETRAINED["digits"])
        if start != "dense":
            kind = "faithful" if start == "faithful" else "identity"
            learn_ratios(apply_diffratio(model, DiffRatioConfig(router_start=kind)))
        if start == "zeros":
            for block in routed_blocks(model):
                torch.nn.init.zeros_(block.diffratio.router_weight)
        losses[start] = digits_loss(model)
    dense = losses["dense"]
    assert abs(losses["zeros"] - dense) < 1e-6
    assert abs(losses["identity"] - dense) < 1e-3 * dense
    assert losses["faithful"] > 1.5 * dense


def test_the_shipped_adapter_goes_on_learning(tiny):
    """Loaded, frozen, and given a table: it starts where the table starts."""
    model = load_pixart(DIGITS_LT30)
    load_diffratio(model, DIGITS_LT30)
    before = [block.diffratio.router_weight.clone() for block in routed_blocks(model)]
    table = learn_ratios(model, start=0.7)
    assert table.nearest() == [[7] * 4] * len(before)
    assert all(
        torch.equal(block.diffratio.router_weight, weight)
        for block, weight in zip(routed_blocks(model), before, strict=True)
    )


def test_a_table_that_peft_trains_is_the_one_that_decides(tiny, tmp_path):
    """`modules_to_save` puts a wrapper with an original and a trained copy in the table's place."""
    model = tiny.route(tiny.dit())
    learn_ratios(model, start=0.95)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["diffratio_ratios", "diffratio"])
    )
    inputs = tiny.inputs(model)
    tiny.run(wrapped, inputs, grad=True).square().sum().backward()
    assert [n for n, p in wrapped.named_parameters() if "ratios" in n and p.grad is not None] == [
        "base_model.model.diffratio_ratios.modules_to_save.default.ratios"
    ]
    fill(table_of(wrapped), [[0.6]] * tiny.layers)
    assert tiny.kept(model, inputs) == [[39, 39]] * tiny.layers
    save_diffratio(wrapped, tmp_path)
    assert freeze_ratios(wrapped) == [[6]] * tiny.layers
    plain = load_diffratio(tiny.dit(), tmp_path)
    assert [layer.kept for layer in routed_layers(plain)] == [[6]] * tiny.layers
