"""On the meta device, on which models are planned: shapes, dtypes and gradients as on the CPU, no values."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase

CASES = {
    "mod_block": (dk.mod_block, ModBlockCase(0)),
    "two bins": (dk.two_bin_block, TwoBinCase(0)),
    "one of two bins": (dk.two_bin_block, TwoBinCase(0, weight_large=(1.0, 1.0))),
    "bf16": (dk.mod_block, ModBlockCase(0, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_described(case):
    function, arguments = CASES[case][0], CASES[case][1].arguments()
    on_meta = {key: t.to("meta") if isinstance(t, torch.Tensor) else t for key, t in arguments.items()}
    expected, out = (gradients(function, each, seed=0) for each in (arguments, on_meta))
    for actual, t in [(out[0], expected[0]), *((out[1][key], grad) for key, grad in expected[1].items())]:
        assert (actual.shape, actual.dtype, actual.device.type) == (t.shape, t.dtype, "meta")


def test_a_gradient_reaches_every_argument():
    arguments = ModBlockCase(0).arguments()
    leaves = {
        key: t.to("meta").requires_grad_() for key, t in arguments.items() if isinstance(t, torch.Tensor)
    }
    dk.mod_block(**arguments | leaves).sum().backward()
    assert [key for key, t in leaves.items() if t.grad is None] == []
