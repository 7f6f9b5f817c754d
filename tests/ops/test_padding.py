"""Padded text may hold anything: NaN there neither shows in the output nor in a gradient."""

from dataclasses import replace

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.kernels import sdpa
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.inputs import ModBlockCase, TwoBinCase

LENGTHS = [3, 0, 5]
KEEPS = {"uniform": (6, 6, 6), "per sample": (6, 2, 0)}
NOTHING = [float("nan"), float("inf")]
SIZES = {"seed": 0, "batch": 3, "tokens": 6}
BLOCKS = {
    "mod_block": (dk.mod_block, ModBlockCase(**SIZES)),
    "two_bin_block": (
        dk.two_bin_block,
        TwoBinCase(**SIZES, keep_small=(3, 2, 0), weight_large=(0.2, 1.5, 0.7)),
    ),
}

BLOCK_IMPLEMENTATIONS = [("mod_block", name) for name in ("native", "triton", "reference")]
BLOCK_IMPLEMENTATIONS += [("two_bin_block", name) for name in ("native", "reference")]


def padded_path(query, key, value, query_offsets, key_offsets, max_query, max_key, *, key_lengths):
    """The way of traced and GPU tensors, whose offsets the host does not read."""
    return sdpa._padded(query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, None)


def with_implementation(name):
    return lambda **arguments: dk.attention(**arguments, implementation=name)


PATHS = {
    "sdpa": with_implementation("sdpa"),
    "triton": with_implementation("triton"),
    "reference": with_implementation("reference"),
    "padded": padded_path,
}


@pytest.mark.parametrize("nothing", NOTHING, ids=str)
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("path", PATHS)
def test_attention_ignores_keys_and_values_past_the_length(path, keep, nothing):
    keep = KEEPS[keep]
    query, key, value = torch.randn(sum(keep), 2, 8), torch.randn(3, 5, 2, 8), torch.randn(3, 5, 2, 8)
    padding = torch.arange(5) >= torch.tensor(LENGTHS)[:, None]
    ends = torch.tensor([0, *keep]).cumsum(0).int()
    arguments = {
        "query": query,
        "query_offsets": ends,
        "key_offsets": torch.tensor([0, 5, 10, 15], dtype=torch.int32),
        "max_query": 6,
        "max_key": 5,
        "key_lengths": torch.tensor(LENGTHS, dtype=torch.int32),
    }

    def run(fill):
        filled = [t.masked_fill(padding[..., None, None], fill).flatten(0, 1) for t in (key, value)]
        return gradients(PATHS[path], arguments | dict(zip(("key", "value"), filled, strict=True)), seed=0)

    (expected, expected_grads), (out, grads) = run(0.0), run(nothing)
    assert torch.equal(out, expected) and not out[ends[1] : ends[2]].any()
    for name, grad in grads.items():
        assert torch.equal(grad, expected_grads[name]), name
    assert (
        not grads["key"].view(3, 5, 2, 8)[padding].any()
        and not grads["value"].view(3, 5, 2, 8)[padding].any()
    )


@pytest.mark.parametrize("nothing", NOTHING, ids=str)
@pytest.mark.parametrize(("block", "implementation"), BLOCK_IMPLEMENTATIONS)
@pytest.mark.parametrize("keep", KEEPS)
def test_block_ignores_text_past_the_length(block, keep, implementation, nothing):
    block, case = BLOCKS[block]
    case = replace(case, keep=KEEPS[keep])
    arguments = case.arguments() | {"implementation": implementation}
    arguments["context_lengths"] = torch.tensor(LENGTHS, dtype=torch.int32)
    padding = (torch.arange(5) >= torch.tensor(LENGTHS)[:, None])[..., None, None]

    def run(fill):
        filled = arguments | {"context_kv": arguments["context_kv"].masked_fill(padding, fill)}
        return block(**filled), *gradients(block, filled, seed=0)

    (expected, *_, expected_grads), (inference, training, grads) = run(0.0), run(nothing)
    assert torch.equal(inference, expected) and training.isfinite().all()
    for name, grad in grads.items():
        assert torch.equal(grad, expected_grads[name]), name
