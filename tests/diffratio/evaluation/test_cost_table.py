"""The cost table: known work at small sizes, and blocks whose steps add up to the counted FLOPs."""

from dataclasses import replace

import pytest

from diffratio.evaluation.flops import (
    PRESETS,
    TransformerShape,
    block_flops,
    block_steps,
    step_cost,
    transformer_flops,
)

PIXART = replace(PRESETS["pixart-xl-512"], text_tokens=300)
DIT = PRESETS["dit-xl-256"]
SMALL = TransformerShape(1, 32, 2, 10, 5)  # D = 32, F = 128, N = 10, M = 5


def small(operator, **sizes):
    return step_cost(operator, SMALL, 4, **sizes)


def total(shape, kept, cached):
    steps = block_steps(shape, kept, cache_text_kv=cached)
    return sum(step_cost(step.operator, shape, step.rows).flops for step in steps)


def test_work_is_counted_from_the_sizes():
    def work(operator, **sizes):
        return small(operator, **sizes).operations, small(operator, **sizes).bytes

    assert work("attention") == (4 * 16 * 32, 4 * 4 * 64)
    assert work("cross_attention") == (4 * 4 * 5 * 32, 2 * (4 + 5) * 64)
    assert work("mlp") == (2 * 4 * 2 * 32 * 128, 2 * 4 * 64 + 2 * 32 * 128 * 2)
    assert work("scatter_rescale")[1] == (10 - 4 + 2 * 4 + 10) * 64
    assert work("linear qkv") == (2 * 4 * 96 * 32, 2 * (4 * 32 + 32 * 96 + 4 * 96))
    # rows and weight in, hidden in, the stream out; with the scatter all ten rows of it, six of x
    weight, wide = 32 * 64, 128 * 64
    assert work("linear_gate_residual") == (2 * 4 * 32 * (32 + 1), 4 * 64 + weight + 2 * 4 * 64)
    assert work("linear_scatter") == (4 * 32 * (2 * 128 + 3), 4 * 256 + wide + (4 + 10 + 6) * 64)
    assert work("two_bin_gelu", kept_small=2) == (8 * 6 * 128, 10 * 128 * 2)


def test_samples_and_the_size_of_an_element_are_factors():
    for operator in ("route", "attention", "gather_adaln", "scatter_rescale"):
        one, three = small(operator), small(operator, batch=3)
        assert (three.flops, three.bytes) == (3 * one.flops, 3 * one.bytes)
    assert small("adaln", itemsize=4).bytes == 2 * small("adaln").bytes
    assert small("linear out", batch=3).bytes == 3 * small("linear out").bytes - 2 * 32 * 32 * 2  # the weight


def test_bytes_of_rows():
    row = 1152 * 4
    moved = {
        name: step_cost(name, PIXART, 300, batch=2, itemsize=4).bytes
        for name in ("route", "gather_adaln", "adaln", "scatter_rescale", "linear out", "copy")
    }
    assert moved["route"] == 2 * 1024 * (row + 4) + 2 * 300 * 8
    assert (moved["gather_adaln"], moved["adaln"]) == (3 * 600 * row, 2 * 600 * row)
    assert moved["scatter_rescale"] == (2 * 2048 + 600) * row
    assert moved["linear out"] == 2 * 600 * row + 1152 * row
    assert moved["copy"] == 2 * 2 * 1024 * row


def test_a_joined_product_saves_the_branch():
    for joined, parts in (
        ("linear_gate_residual", ("linear out", "gate_residual")),
        ("linear_scatter", ("linear fc2", "scatter_rescale")),
    ):
        apart = [step_cost(part, PIXART, 300, batch=2) for part in parts]
        one = step_cost(joined, PIXART, 300, batch=2)
        assert sum(part.bytes for part in apart) - one.bytes == 2 * 600 * 1152 * 2
        assert sum(part.operations for part in apart) == one.operations


@pytest.mark.parametrize("shape", [PIXART, DIT], ids=["pixart", "dit"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kept", [1, 77, 256])
def test_flops_of_a_block_are_those_of_its_steps(shape, cached, kept):
    assert total(shape, kept, cached) == block_flops(shape, kept, cache_text_kv=cached).total()
    assert total(shape, None, cached) == block_flops(shape, None, cache_text_kv=cached).total()


def test_flops_with_text_of_another_width_and_a_narrow_mlp():
    shape = replace(PIXART, layers=1, context_width=640, mlp_ratio=2.5)
    parts = transformer_flops(shape, 100).parts
    blocks = sum(parts.get(step.name, 0) for step in block_steps(shape, 100))
    assert total(shape, 100, False) == blocks


def test_a_dense_block_routes_nothing():
    operators = [step.operator for step in block_steps(PIXART)]
    assert not {"route", "gather_adaln", "scatter_rescale"} & set(operators)
    assert operators.count("gate_residual") == 3 and operators.count("adaln") == 2


def test_an_unknown_operator_is_named():
    with pytest.raises(ValueError, match="operator: 'rout' is not one of route"):
        step_cost("rout", SMALL, 1)
