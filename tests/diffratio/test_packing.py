"""q, k and v become one matrix only where they can, and never with a bias lost."""

import pytest
import torch
from torch import nn

from diffratio import apply_diffratio, summary
from diffratio.packing import concatenated, pack, still_packed, why_not_one_matrix


def linears(biases=(True, True, True), dtypes=(torch.float32,) * 3):
    return [nn.Linear(8, 8, bias=b).to(d) for b, d in zip(biases, dtypes, strict=True)]


@pytest.mark.parametrize("biases", [(True, True, False), (False, True, False), (False, False, True)])
def test_a_bias_on_some_only_is_a_reason(biases):
    assert "bias" in why_not_one_matrix(linears(biases))


def test_other_dtypes_are_a_reason():
    assert "dtype" in why_not_one_matrix(linears(dtypes=(torch.float16, torch.float32, torch.float32)))


def test_packing_keeps_every_value_and_sees_a_move():
    three = linears()
    before = [t.clone() for t in concatenated(three)]
    packed = pack(three)
    assert why_not_one_matrix(three) is None and still_packed(three, packed)
    assert all(torch.equal(a, b) for a, b in zip(packed, before, strict=True))
    three[1].double().float()
    assert not still_packed(three, packed)


def test_a_block_whose_k_alone_has_a_bias_runs_as_modules_and_right(tiny):
    model = tiny.pixart()
    for block in model.transformer_blocks:
        block.attn1.to_q.bias = block.attn1.to_v.bias = None
    inputs = tiny.inputs(model)
    tiny.route(model)
    assert {row.reason for row in summary(model)} == {"only some of q, k and v have a bias"}
    assert torch.equal(tiny.run(model, inputs), tiny.run(model, inputs, grad=True))


def test_moved_weights_still_run_in_one_operator_and_let_the_old_matrix_go(tiny):
    model = tiny.pixart()
    tiny.route(model)
    inputs = tiny.inputs(model)
    expected = tiny.run(model, inputs)
    model.double().float()
    assert torch.equal(tiny.run(model, inputs), expected)
    assert all(block._diffratio.packed is None for block in model.transformer_blocks)
    assert {row.path for row in summary(apply_diffratio(model))} == {"mod_block"}
