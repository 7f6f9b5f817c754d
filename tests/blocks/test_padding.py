"""Padded text may hold anything: NaN there neither shows in the output nor in a gradient."""

from dataclasses import replace

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase

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

BLOCK_BACKENDS = [("mod_block", name) for name in ("cpu", "triton", "reference")]
BLOCK_BACKENDS += [("two_bin_block", name) for name in ("cpu", "reference")]


@pytest.mark.parametrize("nothing", NOTHING, ids=str)
@pytest.mark.parametrize(("block", "backend"), BLOCK_BACKENDS)
@pytest.mark.parametrize("keep", KEEPS)
def test_block_ignores_text_past_the_length(block, keep, backend, nothing):
    block, case = BLOCKS[block]
    case = replace(case, keep=KEEPS[keep])
    arguments = case.arguments() | {"backend": backend}
    arguments["context_lengths"] = torch.tensor(LENGTHS, dtype=torch.int32)
    padding = (torch.arange(5) >= torch.tensor(LENGTHS)[:, None])[..., None, None]

    def run(fill):
        filled = arguments | {"context_kv": arguments["context_kv"].masked_fill(padding, fill)}
        return block(**filled), *gradients(block, filled, seed=0)

    (expected, *_, expected_grads), (inference, training, grads) = run(0.0), run(nothing)
    assert torch.equal(inference, expected) and training.isfinite().all()
    for name, grad in grads.items():
        assert torch.equal(grad, expected_grads[name]), name
