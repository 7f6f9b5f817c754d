"""Writes that nobody announces: through .data, numpy and edits in place, between two calls."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from diffratio import cache_text, disable_diffratio, learn_ratios


def add_to_data(tensor):
    tensor.data += 0.5


def write_by_numpy(tensor):
    tensor.detach().numpy()[...] *= 1.5


def replace_data(tensor):
    tensor.data = tensor.data * 1.5


def in_place(tensor):
    with torch.no_grad():
        tensor.mul_(1.5)


WRITES = [add_to_data, write_by_numpy, replace_data, in_place]
WEIGHTS = [
    "attn1.to_q.weight", "attn1.to_out.0.bias", "attn2.to_k.weight", "attn2.to_v.bias",
    "ff.net.0.proj.weight", "ff.net.2.bias", "scale_shift_table", "diffratio.router_weight",
]  # fmt: skip


@pytest.fixture
def pixart(tiny):
    return tiny.route(tiny.pixart())


def fresh(tiny, model, inputs):
    """The output of a copy, which has seen no call and remembers nothing."""
    return tiny.run(copy.deepcopy(model), inputs)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_written_between_calls(tiny, pixart, write, name):
    inputs = tiny.inputs(pixart)
    before = tiny.run(pixart, inputs)
    write(pixart.transformer_blocks[1].get_parameter(name))
    after = tiny.run(pixart, inputs)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh(tiny, pixart, inputs))


@pytest.mark.parametrize("write", WRITES[1:])
@pytest.mark.parametrize("shape", ["[B, M]", "[B, 1, M]"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_mask_edited_between_calls(tiny, pixart, write, shape, cached, grad):
    inputs = tiny.inputs(pixart)
    mask = inputs["encoder_attention_mask"].float()
    if shape == "[B, 1, M]":
        mask = (1 - mask[:, None]) * -10000.0
    inputs["encoder_attention_mask"] = mask
    with cache_text(pixart) if cached else torch.enable_grad():
        for tokens in (slice(2, None), slice(0, 3), slice(1, 2)):
            tiny.run(pixart, inputs, grad)
            edited = mask.clone()
            edited[..., tokens] = (1.0 - edited if shape == "[B, M]" else -10000.0 - edited)[..., tokens]
            if write is write_by_numpy:
                mask.numpy()[...] = edited.numpy()
            elif write is replace_data:
                mask.data = edited
            else:
                mask.copy_(edited)
            expected = tiny.run(copy.deepcopy(pixart), inputs, grad)
            assert torch.equal(tiny.run(pixart, inputs, grad), expected)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.1.attn2.to_k.weight",
        "transformer_blocks.0.attn2.to_v.bias",
        "caption_projection.linear_2.weight",
    ],
)
def test_a_text_weight_written_inside_of_cache_text(tiny, pixart, write, name):
    inputs = tiny.inputs(pixart)
    with cache_text(pixart):
        tiny.run(pixart, inputs)
        write(pixart.get_parameter(name))
        assert torch.equal(tiny.run(pixart, inputs), fresh(tiny, pixart, inputs))


@pytest.mark.parametrize("write", WRITES)
def test_a_caption_weight_written_while_routing_is_off(tiny, pixart, write):
    inputs = tiny.inputs(pixart)
    with cache_text(disable_diffratio(pixart)):
        tiny.run(pixart, inputs)
        write(pixart.get_parameter("caption_projection.linear_2.weight"))
        assert torch.equal(tiny.run(pixart, inputs), fresh(tiny, pixart, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_nobody_writes_is_projected_once(tiny, pixart, dtype):
    pixart.to(dtype)
    inputs = tiny.inputs(pixart)
    with cache_text(pixart):
        tiny.run(pixart, inputs)
        first = dict(pixart._diffratio_model.text._entries)
        tiny.run(pixart, inputs)
        again = pixart._diffratio_model.text._entries
        assert len(first) == 4 and all(again[modules] is known for modules, known in first.items())


def test_a_text_written_inside_of_cache_text(tiny, pixart):
    inputs = tiny.inputs(pixart)
    text = inputs["encoder_hidden_states"]
    with cache_text(pixart):
        for write in WRITES:
            tiny.run(pixart, inputs)
            write(text)
            assert torch.equal(tiny.run(pixart, inputs), fresh(tiny, pixart, inputs))


@pytest.mark.parametrize("write", WRITES)
def test_learned_ratios_written_between_calls(tiny, pixart, write):
    inputs, table = tiny.inputs(pixart), learn_ratios(pixart, start=0.4)
    for grad in (False, True):
        tiny.run(pixart, inputs, grad)
        write(table.ratios)
        table.invalidate()
        assert torch.equal(tiny.run(pixart, inputs, grad), tiny.run(copy.deepcopy(pixart), inputs, grad))


TARGETS = {"blocks": ["attn2.to_k", "attn2.to_v"], "caption": ["linear_1", "linear_2"]}


def lora(model, targets):
    """The model with adapters that matter, as peft puts them on."""
    config = LoraConfig(target_modules=targets, init_lora_weights=False, r=4)
    return get_peft_model(model, config)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_merged_inside_of_cache_text(tiny, pixart, targets, called):
    inputs = tiny.inputs(pixart)
    with cache_text(pixart):
        plain = tiny.run(pixart, inputs)
        adapted = lora(pixart, TARGETS[targets])
        steps = (lambda: None, adapted.merge_adapter, adapted.unmerge_adapter, adapted.merge_and_unload)
        for step in steps:
            step()
            if called or step is steps[-1]:
                output = tiny.run(pixart, inputs)
                assert torch.equal(output, fresh(tiny, pixart, inputs))
        assert not torch.allclose(output, plain)
