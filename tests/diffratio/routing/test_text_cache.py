"""`cache_text`: the same bits, the text projected once, and never a text, mask or weight of before."""

import copy
import threading

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from diffratio import (
    apply_diffratio,
    cache_text,
    disable_diffratio,
    enable_diffratio,
    remove_diffratio,
    summary,
)
from diffratio.routing import text_cache

PER_TEXT = 2 * 3 + 2
"""Products of one text: keys and values of three layers, two linears of the caption projection."""


@pytest.fixture
def pixart(tiny):
    return tiny.route(tiny.pixart())


@pytest.fixture
def products(monkeypatch):
    """`products(model)` counts, from then on, the products that depend on the text alone."""
    linear, watched, counted = nn.functional.linear, set(), []

    def counting(rows, weight, bias=None):
        if weight in watched:
            counted.append(weight)
        return linear(rows, weight, bias)

    def watch(model):
        for name, module in model.named_modules():
            if "caption_projection.linear" in name or name.endswith(("attn2.to_k", "attn2.to_v")):
                watched.add(module.weight)
        return counted

    monkeypatch.setattr(nn.functional, "linear", counting)
    return watch


def steps(tiny, model, inputs, count=3):
    """The outputs of calls that differ in latents and timestep, as the steps of a sampling loop do."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(count, *inputs["hidden_states"].shape, generator=generator)
    times = [torch.full_like(inputs["timestep"], 900 - 200 * i) for i in range(count)]
    dtype = inputs["hidden_states"].dtype
    return [
        tiny.run(model, inputs | {"hidden_states": x.to(dtype), "timestep": t})
        for x, t in zip(latents, times, strict=True)
    ]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


MASKS = {
    "none": lambda mask: None,
    "0/1": lambda mask: mask,
    "bool": lambda mask: mask.bool()[:, None],
    "bias": lambda mask: ((1 - mask.float()) * -10000.0)[:, None],
}


@pytest.mark.parametrize("mask", MASKS)
def test_every_step_has_the_same_bits_and_the_text_is_projected_once(tiny, pixart, products, mask):
    inputs = tiny.inputs(pixart)
    inputs["encoder_attention_mask"] = MASKS[mask](inputs["encoder_attention_mask"])
    expected, counted = steps(tiny, pixart, inputs), products(pixart)
    with cache_text(pixart):
        assert same(steps(tiny, pixart, inputs), expected)
    assert len(counted) == PER_TEXT
    assert same(steps(tiny, pixart, inputs), expected)
    assert len(counted) == 4 * PER_TEXT


def test_positional_arguments_are_understood(tiny, pixart, products):
    given, counted = tiny.inputs(pixart), products(pixart)
    order = ["hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs"]
    args = [*(given[name] for name in order), None, None, given["encoder_attention_mask"]]
    with torch.no_grad(), cache_text(pixart):
        outputs = [pixart(*args).sample for _ in range(2)]
    assert len(counted) == PER_TEXT
    assert same(outputs, [tiny.run(pixart, given)] * 2)


def edit(tensor):
    with torch.no_grad():
        tensor.mul_(-1.5)


def each(model, path):
    return [module for name, module in model.named_modules() if name.endswith(path)]


def replace_data(model):
    for linear in each(model, "attn2.to_k"):
        # The second tensor may well lie where the first did before.
        linear.weight.data = linear.weight.data.double()
        linear.weight.data = linear.weight.data.float() * 2


LORA = LoraConfig(r=4, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False)
CHANGES = {
    "text in place": lambda m, i: edit(i["encoder_hidden_states"]),
    "a view of the text in place": lambda m, i: edit(i["encoder_hidden_states"][1, 2:]),
    "text in place, of the same norm": lambda m, i: i["encoder_hidden_states"].neg_(),
    "mask in place": lambda m, i: i["encoder_attention_mask"][:, 3].logical_not_(),
    "another mask": lambda m, i: i.update(encoder_attention_mask=torch.ones(2, 6, dtype=torch.long)),
    "keys in place": lambda m, i: [edit(linear.weight) for linear in each(m, "attn2.to_k")],
    "values' bias in place": lambda m, i: [edit(linear.bias) for linear in each(m, "attn2.to_v")],
    "caption projection in place": lambda m, i: edit(m.caption_projection.linear_1.weight),
    "caption activation replaced": lambda m, i: setattr(m.caption_projection, "act_1", nn.SiLU()),
    "data replaced": lambda m, i: replace_data(m),
    "load_state_dict": lambda m, i: m.load_state_dict({n: t * 1.5 for n, t in m.state_dict().items()}),
    "load_state_dict with assign": lambda m, i: m.load_state_dict(
        {n: t * 1.5 for n, t in m.state_dict().items()}, assign=True
    ),
    "bfloat16": lambda m, i: (m.bfloat16(), i.update(tiny_bfloat16(i))),
    "bfloat16 and back": lambda m, i: m.bfloat16().float(),
    "LoRA": lambda m, i: inject_adapter_in_model(LORA, m),
    "LoRA, and one of its matrices": lambda m, i: [
        edit(p) for n, p in inject_adapter_in_model(LORA, m).named_parameters() if "lora_B" in n
    ],
}


def tiny_bfloat16(inputs):
    return {name: inputs[name].bfloat16() for name in ("hidden_states", "encoder_hidden_states")}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_is_never_stale(tiny, pixart, change):
    inputs = tiny.inputs(pixart)
    with cache_text(pixart):
        before = steps(tiny, pixart, inputs)
        change(pixart, inputs)
        after = steps(tiny, pixart, inputs)
    assert not any(torch.allclose(a.float(), b) for a, b in zip(after, before, strict=True))
    assert same(after, steps(tiny, pixart, inputs))


def test_an_optimizer_step_and_training_are_untouched(tiny, pixart, products):
    inputs, twin = tiny.inputs(pixart), copy.deepcopy(pixart)

    def train(model):
        tiny.run(model, inputs)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train().enable_gradient_checkpointing()
        tiny.run(model, inputs, grad=True).square().sum().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        in_training = tiny.run(model, inputs)
        return grads, in_training, tiny.run(model.eval(), inputs)

    with cache_text(pixart):
        counted = products(pixart)
        grads, *outputs = train(pixart)
    # The recomputation of checkpointing projects keys and values once more, not the caption.
    assert len(counted) == 4 * PER_TEXT - 2
    expected, *theirs = train(twin)
    assert all(torch.equal(grads[name], expected[name]) for name in expected)
    assert same(outputs, theirs)


def test_two_prompts_take_turns_and_a_third_pushes_out_the_oldest(tiny, pixart, products):
    inputs = tiny.inputs(pixart)
    both = torch.stack([inputs["encoder_hidden_states"], -inputs["encoder_hidden_states"]])
    prompts = [inputs | {"encoder_hidden_states": text} for text in both]
    expected = [steps(tiny, pixart, prompt) for prompt in prompts]
    counted = products(pixart)
    with cache_text(pixart):
        for _ in range(2):
            assert same(
                map(torch.stack, map(lambda p: steps(tiny, pixart, p), prompts)), map(torch.stack, expected)
            )
        assert len(counted) == 2 * PER_TEXT
        third = inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"] + 1}
        assert not torch.equal(steps(tiny, pixart, third)[0], expected[0][0])
        assert entries(pixart) == [text_cache.KEPT_TEXTS] * 4
        assert same(steps(tiny, pixart, prompts[0]), expected[0])
        assert len(counted) == 4 * PER_TEXT


def test_equal_values_in_another_tensor_and_another_batch_are_projected_anew(tiny, pixart, products):
    inputs, counted = tiny.inputs(pixart), products(pixart)
    with cache_text(pixart):
        first = tiny.run(pixart, inputs)
        text = inputs["encoder_hidden_states"].clone()
        assert torch.equal(tiny.run(pixart, inputs | {"encoder_hidden_states": text}), first)
        assert len(counted) == 2 * PER_TEXT
        one = {n: inputs[n][:1] for n in inputs if n != "added_cond_kwargs"}
        one["added_cond_kwargs"] = inputs["added_cond_kwargs"]
        out = tiny.run(pixart, one)
        assert len(counted) == 3 * PER_TEXT
    assert torch.equal(out, tiny.run(pixart, one))


def entries(model):
    """How many texts are kept for each projection that has been cached."""
    texts = model._diffratio_model.text
    return [] if texts is None else list(map(len, texts._entries.values()))


def test_projections_end_with_disabling_and_with_the_context(tiny, pixart):
    inputs = tiny.inputs(pixart)
    dense = tiny.run(remove_diffratio(copy.deepcopy(pixart)), inputs)
    with cache_text(pixart):
        tiny.run(pixart, inputs)
        assert entries(pixart) == [1, 1, 1, 1]
        disable_diffratio(pixart)
        assert entries(pixart) == []
        assert torch.equal(tiny.run(pixart, inputs), dense)
        assert entries(pixart) == [1]  # of the caption projection
        tiny.run(enable_diffratio(pixart), inputs)
        assert entries(pixart) == [1, 1, 1, 1]
        with cache_text(pixart):
            pass
        assert entries(pixart) == [1, 1, 1, 1]
    assert entries(pixart) == []
    tiny.run(pixart, inputs)
    assert entries(pixart) == []


@pytest.mark.parametrize("end", ["left", "left by an error", "removed"])
def test_the_context_leaves_no_trace(tiny, pixart, end):
    before = tiny.snapshot(pixart)
    dense = tiny.snapshot(remove_diffratio(copy.deepcopy(pixart)))
    inputs = tiny.inputs(pixart)
    try:
        with cache_text(pixart):
            tiny.run(pixart, inputs)
            assert "forward" in vars(pixart.caption_projection)
            if end == "left by an error":
                raise KeyboardInterrupt
            if end == "removed":
                remove_diffratio(pixart)
    except KeyboardInterrupt:
        pass
    assert tiny.snapshot(pixart) == (dense if end == "removed" else before)


def test_a_copy_made_inside_has_no_cache(tiny, pixart, products):
    inputs = tiny.inputs(pixart)
    with cache_text(pixart):
        tiny.run(pixart, inputs)
        twin = copy.deepcopy(pixart)
        assert entries(twin) == []
        edit(twin.caption_projection.linear_1.weight)
        counted = products(twin)
        edited = [tiny.run(twin, inputs) for _ in range(2)]
        assert len(counted) == 2 * PER_TEXT
        edit(pixart.caption_projection.linear_1.weight)
    assert torch.allclose(edited[0], tiny.run(pixart, inputs), atol=1e-5)
    with cache_text(twin):
        cached = [tiny.run(twin, inputs) for _ in range(2)]
    assert len(counted) == 3 * PER_TEXT and same(cached, edited)
    assert "forward" not in vars(remove_diffratio(twin).caption_projection)


def test_text_of_inference_mode_is_projected_in_every_call(tiny, pixart, products):
    inputs, counted = tiny.inputs(pixart), products(pixart)
    with cache_text(pixart), torch.inference_mode():
        known = tiny.run(pixart, inputs)
        assert torch.equal(tiny.run(pixart, inputs), known)
        assert len(counted) == PER_TEXT  # the text itself was made outside
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].clone()
        assert torch.equal(tiny.run(pixart, inputs), known)
        inputs["encoder_hidden_states"].mul_(-1)
        changed = tiny.run(pixart, inputs)
        assert len(counted) == 3 * PER_TEXT
    assert not torch.allclose(changed, known)
    assert torch.equal(changed, tiny.run(pixart, inputs))


def test_autocast_has_projections_of_its_own(tiny, pixart):
    inputs = tiny.inputs(pixart)

    def cast():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tiny.run(pixart, inputs)

    expected = [tiny.run(pixart, inputs), cast()]
    with cache_text(pixart):
        assert same([tiny.run(pixart, inputs), cast(), tiny.run(pixart, inputs), cast()], expected * 2)


def test_threads_with_texts_of_their_own(tiny, pixart):
    inputs = tiny.inputs(pixart)
    prompts = [inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"] * f} for f in (1, 2, 3)]
    expected, wrong = [steps(tiny, pixart, prompt) for prompt in prompts], []

    def sample(prompt, right):
        for _ in range(5):
            if not same(steps(tiny, pixart, prompt), right):
                wrong.append(prompt)

    with cache_text(pixart):
        pairs = zip(prompts, expected, strict=True)
        threads = [threading.Thread(target=sample, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("inside", [False, True])
def test_hooks_on_the_caption_projection_still_run(tiny, pixart, inside):
    """Also one that writes into what the projection gave it, which is then what was kept."""
    inputs, caption = tiny.inputs(pixart), pixart.caption_projection
    handle = caption.register_forward_hook(lambda module, args, output: output.mul_(2))
    expected = steps(tiny, pixart, inputs)
    if inside:
        handle.remove()
    with cache_text(pixart):
        if inside:
            caption.register_forward_hook(lambda module, args, output: output.mul_(2))
        assert same(steps(tiny, pixart, inputs), expected)


def test_a_hook_inside_the_caption_projection_ends_its_cache(tiny, pixart):
    inputs = tiny.inputs(pixart)
    with cache_text(pixart):
        before = tiny.run(pixart, inputs)
        pixart.caption_projection.linear_1.register_forward_hook(lambda module, args, output: -output)
        assert not torch.allclose(tiny.run(pixart, inputs), before)


def test_a_compiled_model_projects_in_every_call(tiny, pixart):
    inputs = tiny.inputs(pixart)
    compiled = torch.compile(pixart, backend="eager")
    with cache_text(compiled):
        before = tiny.run(compiled, inputs)
        assert entries(pixart) == []
        edit(inputs["encoder_hidden_states"])
        after = tiny.run(compiled, inputs)
    assert torch.allclose(after, tiny.run(pixart, inputs), atol=1e-5)
    assert not torch.allclose(after, before)


@torch.no_grad()
def test_a_capture_computes_anew(monkeypatch):
    """A graph that held the projections of one text would replay them for every other."""
    cache, text = text_cache.Texts(), torch.ones(2)
    made = [cache.project(lambda: text + 1, text)]
    monkeypatch.setattr(text_cache, "capturing", lambda: True)
    made.append(cache.project(lambda: text + 1, text))
    monkeypatch.setattr(text_cache, "capturing", lambda: False)
    made.append(cache.project(lambda: text + 1, text))
    assert made[2] is made[0] is not made[1]


def test_models_without_text_and_without_routing(tiny):
    dit = tiny.route(tiny.dit())
    expected = steps(tiny, dit, tiny.inputs(dit))
    with pytest.warns(UserWarning, match="DiTTransformer2DModel project no text"), cache_text(dit):
        assert same(steps(tiny, dit, tiny.inputs(dit)), expected)
    with pytest.raises(ValueError, match="has no diffratio blocks"), cache_text(tiny.dit()):
        pass


def test_new_kept_counts_take_the_same_projections(tiny, pixart, products):
    inputs, counted = tiny.inputs(pixart), products(pixart)
    with cache_text(pixart):
        tiny.run(pixart, inputs)
        for compression in (0.0, 0.8):
            apply_diffratio(pixart, type(pixart._diffratio_model.config)(compression))
            tiny.run(pixart, inputs)
        assert {row.path for row in summary(pixart)} == {"mod_block"}
    assert len(counted) == PER_TEXT
