"""Whatever saves a patched model by its state writes every tensor, and who loads that has the same model."""

import copy

import pytest
import torch
from accelerate import Accelerator, load_checkpoint_in_model
from huggingface_hub import load_torch_model, save_torch_model
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, load_model, save_file, save_model

from diffratio import (
    disable_diffratio,
    enable_diffratio,
    learn_ratios,
    load_diffratio,
    remove_diffratio,
    save_diffratio,
)

LORA = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"])


def tensors_that_share_memory(model):
    """Names of parameters and buffers whose memory another one of the model has too."""
    users = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        users.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return [names for names in users.values() if len(names) > 1]


STATES = {
    "applied": lambda tiny, m: m,
    "run": lambda tiny, m: (tiny.run(m, tiny.inputs(m)), m)[1],
    "trained": lambda tiny, m: (tiny.run(m, tiny.inputs(m), grad=True).sum().backward(), m)[1],
    "disabled": lambda tiny, m: disable_diffratio(m),
    "enabled again": lambda tiny, m: enable_diffratio(disable_diffratio(m)),
    "moved": lambda tiny, m: enable_diffratio(m.double().float()),
    "bfloat16": lambda tiny, m: enable_diffratio(m.bfloat16()),
    "learning": lambda tiny, m: (learn_ratios(m), m)[1],
    "LoRA": lambda tiny, m: inject_adapter_in_model(LORA, m),
    "copied": lambda tiny, m: copy.deepcopy(m),
    "removed": lambda tiny, m: remove_diffratio(m),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_no_two_parameters_of_a_patched_model_share_memory(tiny, model, change):
    assert tensors_that_share_memory(change(tiny, tiny.route(model))) == []


def test_shared_memory_is_seen(model):
    attention = model.transformer_blocks[1].attn1
    attention.to_v.weight.data = attention.to_k.weight.data[:]
    names = [f"transformer_blocks.1.attn1.{name}.weight" for name in ("to_k", "to_v")]
    assert tensors_that_share_memory(model) == [names]


WRITERS = {
    "torch.save": (
        lambda m, d: torch.save(m.state_dict(), d / "state.pt"),
        lambda m, d: m.load_state_dict(torch.load(d / "state.pt", weights_only=True)),
    ),
    "safetensors save_file": (
        lambda m, d: save_file(m.state_dict(), d / "state.safetensors"),
        lambda m, d: m.load_state_dict(load_file(d / "state.safetensors")),
    ),
    "safetensors save_model": (
        lambda m, d: save_model(m, d / "state.safetensors"),
        lambda m, d: load_model(m, d / "state.safetensors"),
    ),
    "load_model of a whole file": (
        lambda m, d: save_file(m.state_dict(), d / "state.safetensors"),
        lambda m, d: load_model(m, d / "state.safetensors"),
    ),
    "accelerate save_model": (
        lambda m, d: Accelerator(cpu=True).save_model(m, d),
        lambda m, d: load_checkpoint_in_model(m, d, strict=True),
    ),
    "accelerate save_model, sharded": (
        lambda m, d: Accelerator(cpu=True).save_model(m, d, max_shard_size="100KB"),
        lambda m, d: load_checkpoint_in_model(m, d, strict=True),
    ),
    "accelerate save_state": (
        lambda m, d: with_accelerator(m, lambda accelerator: accelerator.save_state(d)),
        lambda m, d: with_accelerator(m, lambda accelerator: accelerator.load_state(d)),
    ),
    "hub": (save_torch_model, lambda m, d: load_torch_model(m, d, strict=True)),
    "hub, sharded": (
        lambda m, d: save_torch_model(m, d, max_shard_size="30KB"),
        lambda m, d: load_torch_model(m, d, strict=True),
    ),
    "diffusers and an adapter": (
        lambda m, d: (m.save_pretrained(d), save_diffratio(m, d)),
        lambda m, d: load_diffratio(dense_weights(m, d), d),
    ),
    "diffusers, sharded, and an adapter": (
        lambda m, d: (m.save_pretrained(d, max_shard_size="30KB"), save_diffratio(m, d)),
        lambda m, d: load_diffratio(dense_weights(m, d), d),
    ),
}


def with_accelerator(model, do):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model)
    do(accelerator)


def dense_weights(model, folder):
    """The model with the weights that diffusers finds in a folder."""
    dense = type(model).from_pretrained(folder)
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected and all(".diffratio." in name for name in missing)
    return model


@pytest.mark.parametrize("save, load", WRITERS.values(), ids=WRITERS)
def test_what_was_saved_is_the_model(tiny, model, tmp_path, save, load):
    inputs = tiny.inputs(model)
    other = tiny.route(copy.deepcopy(model), router_bias=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    tiny.route(model, router_bias=True)
    expected, state = tiny.run(model, inputs), copy.deepcopy(model.state_dict())
    save(model, tmp_path)
    assert not torch.equal(tiny.run(other, inputs), expected)
    load(other, tmp_path)
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    assert torch.equal(tiny.run(other, inputs), expected)
