"""The FLOPs of the steps are those of `diffratio.flops`, and their bytes those of the operators."""

from dataclasses import replace

import pytest

from diffratio.flops import TransformerShape, block_flops, transformer_flops
from diffratio.plan.steps import OPERATORS, ROW_STEPS, Sizes, dense_steps, routed_steps, step

PIXART = TransformerShape.pixart_xl_512(text_tokens=300)
DIT = TransformerShape.dit_xl_256()


def total(steps):
    return sum(one.flops for one in steps)


def every(joined):
    return True


def never(joined):
    return False


@pytest.mark.parametrize("joined", [never, every])
@pytest.mark.parametrize("shape", [PIXART, DIT], ids=["pixart", "dit"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kept", [1, 77, 256])
def test_flops_of_a_routed_block(shape, cached, kept, joined):
    sizes = Sizes.of(shape, 3, kept, 2)
    counted = block_flops(shape.tokens, kept, shape.width, shape.text_tokens, cache_text_kv=cached)
    assert total(routed_steps(sizes, cached, joined)) == 3 * counted


@pytest.mark.parametrize("joined", [never, every])
@pytest.mark.parametrize("shape", [PIXART, DIT], ids=["pixart", "dit"])
@pytest.mark.parametrize("cached", [True, False])
def test_flops_of_a_dense_block(shape, cached, joined):
    counted = block_flops(shape.tokens, None, shape.width, shape.text_tokens, cache_text_kv=cached)
    assert total(dense_steps(Sizes.of(shape, 2, 5, 2), cached, joined)) == 2 * counted


@pytest.mark.parametrize("steps", [routed_steps, dense_steps])
def test_products_that_end_in_the_residual_stream_save_the_branch_and_its_kernel(steps):
    sizes = Sizes.of(PIXART, 2, 300, 2)
    rows = 2 * (300 if steps is routed_steps else 1024)
    apart, joined = steps(sizes), steps(sizes, is_one_kernel=every)
    branch, saved = rows * 1152 * 2, sum(one.moved for one in apart) - sum(one.moved for one in joined)
    unwritten = 1 if steps is routed_steps else 0  # the out-projection finds the gathered rows in x
    assert saved == (3 * 2 + unwritten) * branch
    fewer = 2 if steps is routed_steps else 3  # rows that are not kept need a kernel that copies them
    assert sum(one.launches for one in apart) - sum(one.launches for one in joined) == fewer
    last = "fc2 + scatter_rescale" if steps is routed_steps else "fc2 + gate_residual"
    names = ["out + gate_residual", "cross out + cross residual", last]
    assert [one.name for one in joined if one.operator in ROW_STEPS] == names
    assert len(apart) - len(joined) == 2 and "fc1" in [one.name for one in joined]


def test_logits_that_are_handed_over_are_read_with_the_rows():
    sizes = Sizes.of(PIXART, 2, 300, 2)
    alone = routed_steps(sizes)
    handed = routed_steps(sizes, is_one_kernel=every, scored=True, scores_next=True)
    assert total(alone) == total(handed)
    assert (alone[0].launches, handed[0].launches, handed[0].flops) == (2, 1, 0)
    assert alone[0].moved - handed[0].moved == 2 * 1024 * 1152 * 2
    assert [one.operator for one in handed[-2:]] == ["mlp", "scatter_rescale_next"]
    assert handed[-1].moved - alone[-1].moved == 2 * 1024 * 4


def test_each_product_is_asked_for_by_its_own_rows():
    asked = []
    routed_steps(Sizes.of(PIXART, 2, 300, 2), is_one_kernel=lambda joined: asked.append(joined))
    shapes = [(one.operator, one.products) for one in asked]
    out = ("linear_gate_residual", ((600, 1152, 1152),))
    assert shapes == [out, out, ("linear_scatter", ((600, 1152, 4608),))]


def test_flops_with_text_of_another_width_and_a_narrow_mlp():
    shape = replace(PIXART, layers=1, context_width=640, mlp_ratio=2.5)
    parts = transformer_flops(shape, 100).parts
    blocks = sum(parts[name] for name in ("qkv", "attention", "attention_out", "cross_q_out",
                                          "cross_attention", "text_kv", "mlp", "router"))  # fmt: skip
    assert total(routed_steps(Sizes.of(shape, 1, 100, 2), cache_text_kv=False)) == blocks


def test_a_block_that_keeps_nothing_copies_its_rows():
    [copy] = routed_steps(Sizes.of(PIXART, 2, 0, 2))
    assert (copy.flops, copy.moved) == (0, 2 * 2 * 1024 * 1152 * 2)


def test_bytes_of_rows():
    sizes = Sizes.of(PIXART, 2, 300, 4)
    row = 1152 * 4
    moved = {name: step(name, sizes).moved for name in OPERATORS}
    assert moved["route"] == 2 * 1024 * (row + 4) + 2 * 300 * 8
    assert (moved["gather_adaln"], moved["adaln"]) == (3 * 600 * row, 2 * 600 * row)
    assert moved["scatter_rescale"] == (2 * 2048 + 600) * row
    assert moved["linear out"] == 2 * 600 * row + 1152 * row


def test_a_dense_block_routes_nothing():
    names = [one.operator for one in dense_steps(Sizes.of(PIXART, 1, 9, 2))]
    assert not {"route", "gather_adaln", "scatter_rescale"} & set(names)
    assert names.count("gate_residual") == 3 and names.count("adaln") == 2


def test_an_unknown_operator_is_named():
    with pytest.raises(ValueError, match="operator: 'rout' is not one of route"):
        step("rout", Sizes.of(PIXART, 1, 9, 2))
