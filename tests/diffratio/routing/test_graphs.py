"""`cuda_graphs` with operators recorded on the CPU: the eager bits, the right graph, and no stale one."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    cache_text,
    cuda_graphs,
    disable_diffratio,
    learn_ratios,
    record_routing,
    remove_diffratio,
)
from diffratio.families import text_mask
from diffratio.routing import graphs

REGIONS = {0: [0.1, 0.2, 0.3, 0.3], 1: [0.5, 0.6, 0.7, 0.7], 2: [1.0, 0.0, 0.2, 0.2]}
"""Regions 2 and 3 keep the same, and so share a graph."""


@pytest.fixture
def recorder(monkeypatch, op_recorder):
    """Eager calls mean by a text mask what they mean on a GPU, where they do not wait for its values."""
    made = op_recorder()
    made.install(monkeypatch)
    monkeypatch.setattr(text_mask, "capturing", lambda: True)
    return made


@pytest.fixture
def routed(tiny, model):
    return tiny.route(model, num_regions=4, overrides=REGIONS)


def calls(tiny, model, times=(900, 700, 400, 100), batch=2):
    """Inputs of calls that differ in all their values, text masks included."""
    for seed, time in enumerate(times):
        generator = torch.Generator().manual_seed(seed)
        inputs = tiny.inputs(model, time, batch)
        inputs["hidden_states"] = torch.randn(inputs["hidden_states"].shape, generator=generator)
        if "encoder_hidden_states" in inputs:
            text = inputs["encoder_hidden_states"]
            inputs["encoder_hidden_states"] = torch.randn(text.shape, generator=generator).to(text)
            inputs["encoder_attention_mask"] = torch.randint(0, 2, text.shape[:2], generator=generator)
        yield inputs


def outputs(tiny, model, *args, **kwargs):
    return [tiny.run(model, inputs) for inputs in calls(tiny, model, *args, **kwargs)]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_replays_have_the_eager_bits_and_there_is_a_graph_per_kept_counts(tiny, routed, recorder):
    times = (900, 700, 400, 100) * 2
    expected = outputs(tiny, routed, times)
    with cuda_graphs(routed) as held:
        assert same(outputs(tiny, routed, times), expected)
        assert len(held) == recorder.recorded == 3
        assert recorder.replayed == len(times)
    assert same(outputs(tiny, routed, times), expected)
    assert recorder.replayed == len(times)


MASKS = {
    "bool": lambda mask: mask.bool()[:, None],
    "bias": lambda mask: ((1 - mask.float()) * -10000.0)[:, None],
    "soft bias": lambda mask: (mask.float() - 1)[:, None],
    "none": lambda mask: None,
}


@pytest.mark.parametrize("mask", MASKS)
def test_text_masks(tiny, recorder, mask):
    """A soft one by the blocks' own modules, as without graphs."""
    model = tiny.route(tiny.pixart())
    given = [
        inputs | {"encoder_attention_mask": MASKS[mask](inputs["encoder_attention_mask"])}
        for inputs in calls(tiny, model)
    ]
    expected = [tiny.run(model, inputs) for inputs in given]
    with cuda_graphs(model) as held:
        assert same([tiny.run(model, inputs) for inputs in given], expected)
        assert len(held) == 1


def test_a_mask_changed_in_place(tiny, recorder):
    model = tiny.route(tiny.pixart())
    inputs = tiny.inputs(model)
    with cuda_graphs(model):
        before = tiny.run(model, inputs)
        inputs["encoder_attention_mask"][:, 3].logical_not_()
        after = tiny.run(model, inputs)
    assert torch.equal(after, tiny.run(model, inputs))
    assert not torch.allclose(after, before)


def in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)


def through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.25)


def replaced(model):
    linear = model.transformer_blocks[1].attn1.to_out[0]
    linear.weight = nn.Parameter(linear.weight.detach() * 1.25)


def data_replaced(model):
    weight = model.transformer_blocks[1].ff.net[2].weight
    weight.data = weight.data * 1.25


def bias_added(model):
    router = model.transformer_blocks[1].diffratio
    router.router_bias = nn.Parameter(torch.tensor([3.0]))


def block_swapped(model):
    block = model.transformer_blocks[1]
    block.ff.net[2] = copy.deepcopy(block.ff.net[2])
    block.ff.net[2].weight.data.mul_(1.25)


LORA = LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False)
CHANGES = {
    # change -> graphs captured by one call before it and one after
    "in place": (in_place, 1),
    "through data": (through_data, 1),
    "replaced": (replaced, 2),
    "data replaced": (data_replaced, 2),
    "a bias that was none": (bias_added, 2),
    "a module swapped": (block_swapped, 2),
    "moved": (lambda m: m.load_state_dict({n: t * 1.25 for n, t in m.state_dict().items()}, assign=True), 2),
    "LoRA": (lambda m: inject_adapter_in_model(LORA, m), 2),
    "bias": (lambda m: setattr(m.transformer_blocks[0].ff.net[2], "bias", None), 2),
    "kept counts": (lambda m: apply_diffratio(m, DiffRatioConfig(0.8)), 2),
    "rescale": (lambda m: apply_diffratio(m, DiffRatioConfig(0.5, rescale="output")), 2),
    "disabled": (disable_diffratio, 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_never_stale(tiny, model, recorder, name):
    change, recorded = CHANGES[name]
    inputs = tiny.inputs(tiny.route(model))
    with cuda_graphs(model):
        before = tiny.run(model, inputs)
        change(model)
        after = tiny.run(model, inputs)
        assert torch.equal(tiny.run(model, inputs), after)
    assert torch.equal(after, tiny.run(model, inputs))
    assert not torch.allclose(after, before)
    assert recorder.recorded == recorded


def test_a_move_and_then_a_change_in_place(tiny, model, recorder):
    inputs = tiny.inputs(tiny.route(model))
    with cuda_graphs(model):
        tiny.run(model, inputs)
        for change in (lambda: model.double().float(), lambda: in_place(model)):
            change()
            assert torch.equal(tiny.run(model, inputs), tiny.run(copy.deepcopy(model), inputs))


def test_shapes_dtypes_autocast_and_constants_have_graphs_of_their_own(tiny, routed, recorder):
    def cast(inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tiny.run(routed, inputs)

    inputs, one = tiny.inputs(routed), tiny.inputs(routed, batch=1)
    expected = [tiny.run(routed, inputs), tiny.run(routed, one), cast(inputs)]
    with cuda_graphs(routed) as held, torch.no_grad():
        for _ in range(2):
            assert same([tiny.run(routed, inputs), tiny.run(routed, one), cast(inputs)], expected)
        assert len(held) == 3
        assert torch.equal(routed(**inputs, return_dict=True).sample, expected[0])
        assert len(held) == 4
        held.invalidate()
        assert len(held) == 0
        assert torch.equal(tiny.run(routed, inputs), expected[0])


def test_ratios_that_are_learned_count_as_they_are_now(tiny, model, recorder):
    table = learn_ratios(tiny.route(model), start=0.8)
    inputs = tiny.inputs(model)
    with cuda_graphs(model) as held:
        before = tiny.run(model, inputs)
        with torch.no_grad():
            table.ratios.fill_(0.4)
        after = tiny.run(model, inputs)
        assert len(held) == 2
    assert torch.equal(after, tiny.run(model, inputs))
    assert not torch.allclose(after, before)


def test_autocast_casts_weights_in_every_replay(tiny, routed, recorder):
    def cast():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tiny.run(routed, tiny.inputs(routed))

    with cuda_graphs(routed):
        before = cast()
        in_place(routed)
        after = cast()
    assert torch.equal(after, cast())
    assert not torch.allclose(after, before)


def test_outputs_are_the_callers(tiny, routed, recorder):
    with cuda_graphs(routed):
        first, second = outputs(tiny, routed, (700, 700))
        kept = first.clone()
        outputs(tiny, routed, (700, 400))
    assert torch.equal(first, kept)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("inside", [False, True], ids=["tensors made outside", "tensors made inside"])
def test_inference_mode(tiny, routed, recorder, inside):
    given = list(calls(tiny, routed))
    expected = [tiny.run(routed, inputs) for inputs in given]
    with cuda_graphs(routed):
        with torch.inference_mode():
            given = list(calls(tiny, routed)) if inside else given
            assert same([tiny.run(routed, inputs) for inputs in given], expected)
        assert same(outputs(tiny, routed), expected)


def test_a_pipeline_samples_the_same(tiny, recorder):
    model = tiny.route(tiny.pixart(out_channels=8), num_regions=4, overrides=REGIONS)
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    pipe = PixArtAlphaPipeline(None, None, vae, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(2, 2, 6, 24, generator=torch.Generator().manual_seed(1))
    masks = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]])
    arguments = {"prompt": None, "negative_prompt": None, "prompt_embeds": text[0], "num_inference_steps": 4}
    arguments |= {"negative_prompt_embeds": text[1], "prompt_attention_mask": masks}
    arguments |= {"negative_prompt_attention_mask": masks.flip(0), "output_type": "latent"}
    arguments |= {"height": 16, "width": 16, "use_resolution_binning": False}

    def sample():
        return pipe(**arguments, generator=torch.Generator().manual_seed(0)).images

    expected = sample()
    with cuda_graphs(pipe) as held:
        assert torch.equal(sample(), expected)
        assert torch.equal(sample(), expected)
        assert len(held) == 3


def training(model, inputs):
    model.train()
    with torch.no_grad():
        model(**inputs)


def recorded(model, inputs):
    with record_routing(model), torch.no_grad():
        model(**inputs)


def with_cached_text(model, inputs):
    with cache_text(model), torch.no_grad():
        model(**inputs)


def with_other(**others):
    def call(model, inputs):
        with torch.no_grad():
            model(**inputs | others)

    return call


REFUSED = {
    "gradients": (lambda m, i: m(**i), RuntimeError, "called with gradients"),
    "training": (training, RuntimeError, "in training mode"),
    "record_routing": (recorded, RuntimeError, "recorded by record_routing"),
    "cache_text": (with_cached_text, RuntimeError, "inside of cache_text"),
    "mixed regions": (with_other(timestep=torch.tensor([900, 100])), ValueError, "several regions"),
    "a number": (with_other(timestep=500), TypeError, "timestep=500 must be a tensor"),
    "no constant": (
        with_other(cross_attention_kwargs={"x": {1}}),
        TypeError,
        "neither tensor nor constant .*set",
    ),
    "another device": (
        with_other(hidden_states=torch.ones(2, 4, 16, 16, device="meta")),
        ValueError,
        "all tensors that the model is given must be on one cpu device",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_are_no_graph_are_refused(tiny, routed, recorder, name):
    call, error, message = REFUSED[name]
    inputs = tiny.inputs(routed)
    expected = tiny.run(routed, inputs)
    with cuda_graphs(routed):
        with pytest.raises(error, match=message):
            call(routed, inputs)
        assert torch.equal(tiny.run(routed.eval(), inputs), expected)


def test_models_that_cannot_have_graphs(tiny, model, recorder):
    with pytest.raises(ValueError, match="has no diffratio blocks"), cuda_graphs(model):
        pass
    tiny.route(model)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="is compiled as a whole"), cuda_graphs(compiled):
        pass
    pipe = SimpleNamespace(transformer=compiled)
    with pytest.raises(ValueError, match="is compiled as a whole"), cuda_graphs(pipe):
        pass
    model.forward = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match="its forward was replaced"), cuda_graphs(model):
        pass
    del model.forward
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="is compiled as a whole"), cuda_graphs(model):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: the error is that there is none")
def test_without_a_gpu_there_is_a_named_error(tiny, routed):
    before = tiny.snapshot(routed)
    with pytest.raises(RuntimeError, match="no CUDA device here"), cuda_graphs(routed):
        pass
    assert tiny.snapshot(routed) == before


@pytest.mark.parametrize("removed", [False, True])
def test_the_context_leaves_no_trace_and_may_be_nested(tiny, routed, recorder, removed):
    expected = tiny.snapshot(remove_diffratio(copy.deepcopy(routed)) if removed else routed)
    with cuda_graphs(routed) as outer:
        with cuda_graphs(routed) as inner:
            assert inner is outer
            tiny.run(routed, tiny.inputs(routed))
        assert "forward" in vars(routed)
        if removed:
            remove_diffratio(routed)
    assert len(outer) == 0
    assert tiny.snapshot(routed) == expected


def test_a_copy_made_inside_has_no_graphs(tiny, routed, recorder):
    inputs = tiny.inputs(routed)
    with cuda_graphs(routed):
        expected = tiny.run(routed, inputs)
        twin = copy.deepcopy(routed)
        assert torch.allclose(tiny.run(twin, inputs), expected, atol=1e-5)
        assert (recorder.recorded, recorder.replayed) == (1, 1)
        with cuda_graphs(twin):
            tiny.run(twin, inputs)
    assert (recorder.recorded, recorder.replayed) == (2, 2)
    assert "forward" not in vars(twin)


def test_compiled_blocks_are_captured_as_they_are(tiny, model, recorder, monkeypatch):
    """Modes of functions would have them compiled again, and broken into pieces."""
    inputs = tiny.inputs(tiny.route(model))
    expected = tiny.run(model, inputs)
    monkeypatch.setattr(graphs, "_Constants", None)
    model.transformer_blocks[0].compile(backend=lambda graph, inputs: graph.forward)
    with cuda_graphs(model):
        assert torch.allclose(tiny.run(model, inputs), expected, atol=1e-6)


def test_the_recorder_keeps_constants_and_refuses_reads(op_recorder):
    """The controls: what these tests look for does go wrong in a recording."""
    buffer, factor = torch.ones(2), torch.ones(2) * 3
    replay = op_recorder().record(lambda given: given * factor, (buffer,))
    factor = torch.ones(2) * 5
    assert replay(torch.full((2,), 2.0)).tolist() == [6, 6]
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        op_recorder().record(lambda given: given * given[0].item(), (buffer,))
    with pytest.raises(RuntimeError, match="capturing .tensor"):
        op_recorder().record(lambda given: given * torch.tensor([2.0, 3.0], device="cpu"), (buffer,))
