"""Calls of blocks as they come in a model, and the reference beside them."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def plain():
    """The module plain.py beside this file."""
    spec = importlib.util.spec_from_file_location("baselines_plain", Path(__file__).with_name("plain.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def block_calls(tiny):
    """Calls of a model's blocks: (block, x, arguments by name, output), in their order."""

    def block_calls(model, inputs):
        calls, hooks = [], []
        for block in model.transformer_blocks:
            hooks.append(
                block.register_forward_hook(
                    lambda block, args, kwargs, out: calls.append((block, args[0], kwargs, out)),
                    with_kwargs=True,
                )
            )
        try:
            tiny.run(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return calls

    return block_calls


@pytest.fixture
def modulated():
    """The six vectors [1, D] of one sample's call of a PixArt or DiT block."""

    def modulated(block, kwargs, sample):
        if block.norm_type == "ada_norm_single":
            time = kwargs["timestep"][sample].view(6, -1)
            return (block.scale_shift_table + time)[:, None].unbind(0)
        norm, one = block.norm1, slice(sample, sample + 1)
        embedded = norm.emb(kwargs["timestep"][one], kwargs["class_labels"][one])
        return norm.linear(norm.silu(embedded)).view(6, 1, -1).unbind(0)

    return modulated
