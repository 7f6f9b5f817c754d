"""q, k and v become one matrix only where they can, and never with a bias lost."""

import pytest
import torch
from torch import nn

from diffratio import summary
from diffratio.one_matrix import concatenated, why_not_one_matrix


def linears(biases=(True, True, True), dtypes=(torch.float32,) * 3):
    return [nn.Linear(8, 8, bias=b).to(d) for b, d in zip(biases, dtypes, strict=True)]


@pytest.mark.parametrize("biases", [(True, True, False), (False, True, False), (False, False, True)])
def test_a_bias_on_some_only_is_a_reason(biases):
    assert "bias" in why_not_one_matrix(linears(biases))


def test_other_dtypes_are_a_reason():
    assert "dtype" in why_not_one_matrix(linears(dtypes=(torch.float16, torch.float32, torch.float32)))


@pytest.mark.parametrize("bias", [True, False])
def test_the_matrix_computes_what_the_three_do(bias):
    three, x = linears(biases=(bias,) * 3), torch.randn(5, 8)
    assert why_not_one_matrix(three) is None
    q, k, v = nn.functional.linear(x, *concatenated(three)).chunk(3, dim=-1)
    for part, linear in zip((q, k, v), three, strict=True):
        torch.testing.assert_close(part, linear(x))


def test_a_block_whose_k_alone_has_a_bias_runs_as_modules_and_right(tiny):
    model = tiny.pixart()
    for block in model.transformer_blocks:
        block.attn1.to_q.bias = block.attn1.to_v.bias = None
    inputs = tiny.inputs(model)
    tiny.route(model)
    assert {row.reason for row in summary(model)} == {"only some of q, k and v have a bias"}
    assert torch.equal(tiny.run(model, inputs), tiny.run(model, inputs, grad=True))
