"""Baselines go on, are seen, and come off; where one is not defined, the error says why."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    cache_text,
    cuda_graphs,
    disable_diffratio,
    enable_diffratio,
    learn_ratios,
    load_diffratio,
    record_routing,
    remove_diffratio,
    save_diffratio,
    summary,
)
from diffratio.baselines import (
    apply_atedm,
    apply_baseline,
    apply_tome,
    parse_baseline,
    remove_baseline,
)
from diffratio.inpainting import LazyPixArt
from diffratio.toy import DIGITS_LT30

NAMES = ["tome:attn:0.5", "tome:mlp:0.2", "tome:all:0.75", "atedm:0.2", "atedm:0.5:residual"]


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_comes_off_without_a_trace(model, name, tiny):
    inputs, before = tiny.inputs(model), tiny.snapshot(model)
    dense = tiny.run(model, inputs)
    assert not torch.equal(tiny.run(apply_baseline(model, name), inputs), dense)
    assert torch.equal(tiny.run(disable_diffratio(model), inputs), dense)
    assert not torch.equal(tiny.run(enable_diffratio(model), inputs), dense)
    assert model.state_dict().keys() == before[1].keys()
    assert remove_baseline(model) is model
    assert torch.equal(tiny.run(model, inputs), dense) and tiny.snapshot(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_a_baseline_of_its_own(model, name, tiny):
    inputs = tiny.inputs(model)
    other = copy.deepcopy(apply_baseline(model, name))
    remove_baseline(model)
    assert torch.equal(tiny.run(apply_baseline(model, name), inputs), tiny.run(other, inputs))


def test_a_routed_model_takes_no_baseline_and_the_other_way_round(model, tmp_path):
    apply_diffratio(model, DiffRatioConfig(0.0))
    with pytest.raises(ValueError, match="^tome:attn:0.2: model .* has routers; call remove_diffratio first"):
        apply_tome(model, 0.2)
    apply_atedm(remove_diffratio(model), 0.2)
    with pytest.raises(
        ValueError, match="^tome:attn:0.2: model .* has the baseline atedm:0.2; call remove_ba"
    ):
        apply_tome(model, 0.2)
    calls = {
        "apply": lambda: apply_diffratio(model),
        "remove": lambda: remove_diffratio(model),
        "learn": lambda: learn_ratios(model),
        "save": lambda: save_diffratio(model, tmp_path),
        "load": lambda: load_diffratio(model, DIGITS_LT30),
        "record": lambda: record_routing(model).__enter__(),
        "graphs": lambda: cuda_graphs(model).__enter__(),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match="has the baseline atedm:0.2 and no routers; call remove_baseline"
        ):
            raise AssertionError(name, call())
    remove_baseline(model)
    with pytest.raises(ValueError, match="has no baseline"):
        remove_baseline(model)


def test_summary_says_that_there_is_a_baseline(model, tiny):
    found = summary(apply_tome(model, 0.25, "mlp"), tokens=64)
    assert found.baseline == "tome:mlp:0.25" and found[0].kept_tokens == (48,)
    assert "baseline tome:mlp:0.25" in str(found) and "0.75" in str(found)
    apply_atedm(remove_baseline(model), 0.2, open_layers=1)
    found = summary(model, tokens=64)
    assert [row.kept_tokens for row in found] == [(51, 64), (51,), (51,)]
    assert found.to_dict()["baseline"] == "atedm:0.2"
    assert summary(apply_diffratio(remove_baseline(model), DiffRatioConfig(0.0))).baseline is None


def test_transformers_of_a_pipeline_draw_each_on_its_own(tiny):
    class Pipeline:
        transformer = tiny.make("pixart")
        transformer_2 = copy.deepcopy(transformer)

    apply_tome(Pipeline, 0.5, "mlp", seed=1)
    inputs = tiny.inputs(Pipeline.transformer)
    one, other = (tiny.run(model, inputs) for model in (Pipeline.transformer, Pipeline.transformer_2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "kept"), [("mod:0.2", 52), ("mod:0.2:floor", 51)])
def test_uniform_mod_keeps_as_many_as_its_name_says(name, kept, tiny):
    model = apply_baseline(tiny.make("pixart"), name)
    assert tiny.kept(model, tiny.inputs(model)) == [[kept] * 2] * 3


def test_a_pipeline_and_its_text_cache(tiny):
    class Pipeline:
        transformer = tiny.make("pixart")

    inputs = tiny.inputs(Pipeline.transformer)
    plain = tiny.run(apply_tome(Pipeline, 0.5, "all").transformer, inputs)
    apply_tome(remove_baseline(Pipeline), 0.5, "all")
    with cache_text(Pipeline):
        assert torch.equal(tiny.run(Pipeline.transformer, inputs), plain)


def test_gradients_flow_and_checkpointing_is_refused(model, tiny):
    inputs = tiny.inputs(model)
    apply_atedm(model, 0.3)
    tiny.run(model, inputs, grad=True).sum().backward()
    assert model.transformer_blocks[0].attn1.to_q.weight.grad.abs().sum() > 0
    model.train().enable_gradient_checkpointing()
    with pytest.raises(RuntimeError, match="^atedm:0.3: gradient checkpointing runs a block twice"):
        tiny.run(model, inputs, grad=True).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(model, dtype, tiny):
    model = model.to(dtype)
    for name in NAMES:
        out = tiny.run(apply_baseline(model, name), tiny.inputs(model))
        assert out.dtype == dtype and out.isfinite().all()
        remove_baseline(model)


@pytest.mark.parametrize("name", ["tome:all:0.5", "atedm:0.2"])
def test_lora_counts_autocast_runs_and_a_model_pickles(model, name, tiny):
    inputs = tiny.inputs(model)
    targets = ["to_q", "to_v", "to_out.0", "ff.net.2"]
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    plain = tiny.run(apply_baseline(model, name), inputs)
    adapted = inject_adapter_in_model(config, remove_baseline(model))
    out = tiny.run(apply_baseline(adapted, name), inputs)
    assert not torch.allclose(out, plain, atol=1e-3)
    other = pickle.loads(pickle.dumps(adapted))
    assert torch.equal(tiny.run(adapted, inputs), tiny.run(other, inputs))
    with torch.autocast("cpu", torch.bfloat16):
        for grad in (False, True):
            assert tiny.run(adapted, inputs, grad).isfinite().all()


BAD = {
    "tome:0.2": "baseline='tome:0.2' must be tome:attn",
    "tome:both:0.2": "baseline='tome:both:0.2' must be",
    "tome:mlp:0.8": "baseline='tome:mlp:0.8': ratio=0.8 must be a number from 0 to 0.75",
    "tome:mlp:much": "baseline='tome:mlp:much': could not convert",
    "tome:mlp:nan": "ratio=nan must be",
    "atedm:1": "ratio=1.0 must be a number from 0 to 0.9",
    "atedm:0.2:zero": "baseline='atedm:0.2:zero' must be",
    "mod:0.25": "baseline='mod:0.25': compression=0.25 must be a tenth",
    "mod:0.2:round": "must be",
    "toca": "must be",
    "": "must be",
}


@pytest.mark.parametrize("text", BAD)
def test_a_name_that_is_none_is_an_error(text):
    with pytest.raises(ValueError, match="^baseline=") as error:
        parse_baseline(text)
    assert BAD[text] in str(error.value)


@pytest.mark.parametrize("text", [*NAMES, "mod:0.3", "mod:0.2:floor"])
def test_a_name_is_that_of_what_it_names(text):
    assert parse_baseline(text).name == text
    assert parse_baseline("atedm:0.20:copy").name == "atedm:0.2"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: apply_tome(m, 0.2, "ffn"), "merge='ffn' must be one of attn, mlp, all"),
        (lambda m: apply_tome(m, -0.1), "ratio=-0.1 must be"),
        (lambda m: apply_tome(m, 0.2, seed=-1), "seed=-1 must be"),
        (lambda m: apply_atedm(m, 0.2, "zero"), "refill='zero' must be one of copy, residual"),
        (lambda m: apply_atedm(m, 0.2, iterations=0), "iterations=0 must be"),
        (lambda m: apply_atedm(m, 0.2, open_layers=-1), "open_layers=-1 must be"),
        (lambda m: apply_atedm(m, 0.2, open_steps=0.25), "open_steps=0.25 must be a tenth"),
        (lambda m: apply_tome(torch.nn.Linear(2, 2), 0.2), "has no transformer block"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_changes(call, text, tiny):
    model = tiny.make("dit")
    before = tiny.snapshot(model)
    with pytest.raises(ValueError, match=f"^{text}|{text}"):
        call(model)
    assert tiny.snapshot(model) == before


def test_tokens_that_are_no_image_of_2_x_2_are_refused(tiny):
    pixart, text = tiny.make("pixart"), torch.randn(2, 5, 24)
    given = {"encoder_hidden_states": text, "timestep": torch.tensor([1, 1])}
    for apply in (apply_tome, apply_atedm):
        with pytest.raises(ValueError, match="does not apply to LazyPixArt: it computes the tokens of holes"):
            apply(LazyPixArt.from_pixart(pixart), 0.5)
    with pytest.raises(ValueError, match="an image of 1 x 4 tokens has no 2 x 2"):
        apply_tome(pixart, 0.5)(torch.randn(2, 4, 2, 8), **given)


def test_a_block_alone_does_not_know_its_image(tiny):
    model = apply_tome(tiny.make("dit"), 0.2)
    x, more = torch.randn(2, 64, 32), {"timestep": torch.tensor([1, 1]), "class_labels": torch.tensor([1, 2])}
    with pytest.raises(RuntimeError, match="the model tells tome:attn:0.2 the size of the image; call it"):
        model.transformer_blocks[0](x, **more)
