"""Plans of a predicted device: totals, break-even, mixed layers, and the model of the targets."""

import json
from dataclasses import replace

import pytest

from diffratio.flops import TransformerShape, block_flops, kept_tokens
from diffratio.plan import DEVICES, plan
from diffratio.plan.cost import Predicted
from diffratio.plan.plan import break_even, routed_blocks
from diffratio.plan.steps import ROW_STEPS, Sizes, step
from diffratio.plan.waves import product_seconds
from diffratio_kernels.kernels.triton import config

H200, A100 = DEVICES["h200"], DEVICES["a100"]
PIXART = TransformerShape.pixart_xl_512(text_tokens=300)
SMALL = TransformerShape(4, 128, 4, 64, 16)


@pytest.mark.parametrize(
    ("device", "batch", "tokens", "wanted"),
    [
        (H200, 16, 1024, (0.90, 0.71, 0.49, 0.31)),
        (H200, 64, 1024, (0.90, 0.69, 0.48, 0.29)),
        (H200, 2, 4096, (0.88, 0.68, 0.44, 0.28)),
        (H200, 16, 4096, (0.87, 0.63, 0.42, 0.23)),
        (H200, 2, 16384, (0.84, 0.55, 0.33, 0.16)),
        (A100, 16, 1024, (0.91, 0.69, 0.48, 0.30)),
        (A100, 16, 4096, (0.87, 0.62, 0.42, 0.23)),
    ],
)
def test_latency_ratios_are_those_that_the_targets_were_set_by(device, batch, tokens, wanted):
    """Where rows are so many that tiles decide, and tokens so many that reading the text does not count.

    The targets' model ends all products in the residual stream; the plan only those where the table of tiles
    says so: the output projections, and fc2 at few of these sizes, which moves ratios by less than .02.
    """
    shape = replace(PIXART, tokens=tokens)
    for tenths, ratio in zip((9, 7, 5, 3), wanted, strict=True):
        found = plan(shape, batch, kept_tokens(tenths, tokens), device)
        assert found.latency_ratio == pytest.approx(ratio, abs=0.03), tenths


@pytest.fixture
def table(monkeypatch):
    """Where the table of tiles says that one kernel is faster, for the A100 and for the others."""

    def given(kernel, of_library):
        made = [
            replace(
                config.PRODUCT_TILES[0],
                kernel=name,
                architecture=a,
                of_library=ratio if name == kernel else 1.0,
            )
            for a, ratio in zip((80, 90), of_library, strict=True)
            for name in ("linear_gate_residual", "linear_scatter")
        ]
        monkeypatch.setattr(config, "PRODUCT_TILES", made)
        config.nearest.cache_clear()

    yield given
    config.nearest.cache_clear()


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        ("linear_gate_residual", ["out + gate_residual", "cross out + cross residual"]),
        ("linear_scatter", ["fc2 + scatter_rescale"]),
    ],
)
def test_products_end_in_the_residual_stream_where_the_table_of_the_device_says_so(kernel, names, table):
    def joined(device):
        costs = plan(replace(PIXART, layers=1), 2, 512, device).routed_costs
        return [cost.step.name for cost in costs if cost.step.operator in ROW_STEPS]

    table(kernel, (1.0, 0.99))
    assert joined(H200) == names and joined(A100) == []
    table(kernel, (0.99, 1.0))
    assert joined(A100) == names and joined(H200) == []
    assert joined(replace(A100, itemsize=4)) == joined(replace(A100, architecture=None)) == []


def test_a_joined_product_costs_what_the_table_says_of_product_and_row_kernel(table):
    table("linear_scatter", (1.0, 0.9))
    sizes = Sizes.of(PIXART, 16, 512, 2)
    costs = Predicted(H200)
    apart = product_seconds(8192, 1152, 4608, H200) + costs.cost(step("scatter_rescale", sizes)).seconds
    assert costs.cost(step("linear_scatter", sizes)).seconds == pytest.approx(0.9 * apart)


def test_an_architecture_without_a_table_of_tiles_is_refused():
    with pytest.raises(ValueError, match="architecture: 75 is not 80, 90 or None"):
        replace(H200, architecture=75)


def test_totals_are_sums_of_layers():
    found = plan(SMALL, 2, [64, None, 0, 20], H200)
    assert found.flops == 2 * sum(
        (block_flops(64, 64, 128, 16), block_flops(64, None, 128, 16), 0, block_flops(64, 20, 128, 16))
    )
    assert found.dense_flops == 8 * block_flops(64, None, 128, 16)
    assert found.seconds == pytest.approx(sum(layer.seconds for layer in found.layers))
    assert found.layers[1].of_dense == 1 and found.layers[0].of_dense > 1
    assert found.latency_ratio == pytest.approx(sum(layer.of_dense for layer in found.layers) / 4)
    assert found.realised == pytest.approx(found.flop_ratio / found.latency_ratio)


def test_layers_of_a_gpu_make_the_router_logits_of_the_next():
    alone, model = (plan(replace(PIXART, layers=n), 16, 717, H200) for n in (1, 28))
    assert model.flops == 28 * alone.flops and model.dense_seconds == pytest.approx(28 * alone.dense_seconds)
    assert 0.96 < model.latency_ratio / alone.latency_ratio < 0.99
    first, inner, last = (model.layers[n].seconds for n in (0, 1, 27))
    assert last < inner < first and {layer.seconds for layer in model.layers[1:-1]} == {inner}
    operators = [[cost.step.operator for cost in found.routed_costs] for found in (alone, model)]
    assert (operators[0][0], operators[0][-1]) == ("route", "scatter_rescale")
    assert (operators[1][0], operators[1][-1]) == ("select", "scatter_rescale_next")


def test_a_processor_routes_every_layer_by_itself():
    cpu = replace(H200, architecture=None)
    alone, model = (plan(replace(PIXART, layers=n), 2, 717, cpu) for n in (1, 28))
    assert model.latency_ratio == pytest.approx(alone.latency_ratio)
    assert model.routed_costs == alone.routed_costs


def test_which_layers_hand_logits_over():
    """Between layers that keep rows at that time: two regions beside one, a dense layer, an empty one."""
    table = [(9,), (5, 0), (7,), None, (3,), (0,), (2,), (2,)]
    found = [[(b.kept, b.scored, b.scores_next) for b in blocks] for blocks in routed_blocks(table, True)]
    assert found == [
        [(9, False, True), (9, False, False)],
        [(5, True, True), (0, False, False)],
        [(7, True, False), (7, False, False)],
        [],
        [(3, False, False)] * 2,
        [(0, False, False)] * 2,
        [(2, False, True)] * 2,
        [(2, True, False)] * 2,
    ]
    assert {b.scored or b.scores_next for blocks in routed_blocks(table, False) for b in blocks} == {False}


def test_regions_count_equally():
    both = plan(PIXART, 2, [[1024, 256]] * 28, H200)
    each = [plan(PIXART, 2, count, H200) for count in (1024, 256)]
    assert both.seconds == pytest.approx(sum(one.seconds for one in each) / 2)
    assert both.flops == sum(one.flops for one in each) / 2


def test_text_projected_in_every_step_costs_on_both_sides():
    cached, again = (plan(PIXART, 2, 512, H200, cache_text_kv=cache) for cache in (True, False))
    assert again.flops - cached.flops == 28 * 2 * 4 * 1152**2 * 300
    assert again.dense_flops - cached.dense_flops == again.flops - cached.flops
    assert again.latency_ratio > cached.latency_ratio


def test_break_even_is_where_a_routed_block_stops_being_faster():
    found = plan(PIXART, 16, 512, H200)
    assert 512 < found.break_even < 1024
    at, above = (plan(PIXART, 16, found.break_even + more, H200).latency_ratio for more in (0, 1))
    assert at <= 1 < above


def test_break_even_of_known_functions():
    assert break_even(lambda count: count, 64, 20.5) == 20
    assert break_even(lambda count: count, 64, 99) == 64
    assert break_even(lambda count: 5 + count, 64, 3) == 0
    assert break_even(lambda count: count, 3, 1.5) == 1
    # slow from 33 to 50, fast again from 51: what is promised holds for all counts below
    assert break_even(lambda count: 9 if 33 <= count <= 50 else 1, 64, 5) == 32


def test_a_launch_bound_block_does_not_pay():
    found = plan(replace(SMALL, tokens=16), 1, 12, H200)
    assert found.latency_ratio > 1 and found.break_even == 0
    assert found.verdict.startswith("does not pay") and "no kept count" in found.verdict
    assert plan(PIXART, 16, 512, H200).verdict.startswith("pays: 51% of the blocks' time saved")


def test_a_slower_bus_slows_the_row_steps_only():
    slow = replace(H200, bandwidth=H200.bandwidth / 2)
    fast, slower = ({c.step.name: c for c in plan(PIXART, 16, 512, d).routed_costs} for d in (H200, slow))
    assert slower["adaln"].seconds > 1.85 * fast["adaln"].seconds
    assert slower["mlp"].seconds == fast["mlp"].seconds
    assert (fast["adaln"].bound, fast["mlp"].bound) == ("bytes", "FLOPs")


def test_heads_that_need_no_padding_are_faster():
    heads = {dim: plan(replace(PIXART, heads=1152 // dim), 16, 1024, H200) for dim in (64, 72)}
    seconds = {dim: next(c.seconds for c in found.dense_costs if c.step.name == "attention")
               for dim, found in heads.items()}  # fmt: skip
    assert seconds[64] - H200.launch_seconds == pytest.approx(0.9 * (seconds[72] - H200.launch_seconds))


def test_the_plan_is_plain_json():
    report = json.loads(json.dumps(plan(SMALL, 2, [[64, 20]] * 4, H200).to_dict()))
    assert report["title"].startswith("predicted for NVIDIA H200 from its datasheet")
    assert report["layers"][3]["kept"] == [64, 20]
    assert {step["origin"] for step in report["steps"]} == {"predicted"}
    assert report["seconds"] > 0 and report["compiled_block_seconds"] is None


@pytest.mark.parametrize(
    ("batch", "kept", "message"),
    [
        (0, 5, "batch: 0 must be a positive integer"),
        (True, 5, "batch: True must be"),
        (1, 65, "kept: 65 is not an integer from 0 to 64"),
        (1, [1, 2], "kept: 2 rows for 4 layers"),
        (1, [1, 2, 3, -1], "kept: -1 is not"),
        (1, [1, 2, 3, []], "kept: a layer needs at least one region"),
        (1, "1234", "kept: '1234' is neither"),
        (1, 0.5, "kept: 0.5 is neither"),
    ],
)
def test_bad_arguments_are_named(batch, kept, message):
    with pytest.raises(ValueError, match=message):
        plan(SMALL, batch, kept, H200)
