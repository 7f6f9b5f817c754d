"""Plans of a predicted device: totals, break-even, mixed layers, and the ratios of the targets."""

import json
from dataclasses import replace

import pytest

from diffratio.evaluation.flops import PRESETS, TransformerShape, block_flops
from diffratio.plan import DEVICES, plan
from diffratio_kernels import kept_tokens

H200, A100 = DEVICES["h200"], DEVICES["a100"]
PIXART = replace(PRESETS["pixart-xl-512"], text_tokens=300)
SMALL = TransformerShape(4, 128, 4, 64, 16)


@pytest.mark.parametrize(
    ("device", "batch", "tokens", "wanted"),
    [
        (H200, 16, 1024, (0.90, 0.71, 0.49, 0.31)),
        (H200, 64, 1024, (0.90, 0.69, 0.48, 0.29)),
        (H200, 16, 4096, (0.87, 0.63, 0.42, 0.23)),
        (H200, 2, 16384, (0.84, 0.55, 0.33, 0.16)),
        (A100, 16, 1024, (0.91, 0.69, 0.48, 0.30)),
        (A100, 16, 4096, (0.87, 0.62, 0.42, 0.23)),
    ],
)
def test_latency_ratios_are_those_that_the_targets_were_set_by(device, batch, tokens, wanted):
    """Where the rows fill the device: 2 x 4096 of them do not, and tiles are no part of the plan."""
    shape = replace(PIXART, tokens=tokens)
    for tenths, ratio in zip((9, 7, 5, 3), wanted, strict=True):
        found = plan(shape, batch, kept_tokens(tenths, tokens), device)
        assert found.latency_ratio == pytest.approx(ratio, abs=0.03), tenths


def test_totals_are_means_of_layers():
    found = plan(SMALL, 2, [64, 32, 0, 20], H200)
    flops = [2 * block_flops(SMALL, kept).total() for kept in (64, 32, 0, 20)]
    assert [layer.flops for layer in found.layers] == flops
    assert found.dense_flops == 2 * block_flops(SMALL, None).total()
    assert found.flop_ratio == pytest.approx(sum(flops) / 4 / found.dense_flops)
    assert found.layers[0].of_dense > 1  # a router, a gather and a scatter more
    assert found.latency_ratio == pytest.approx(sum(layer.of_dense for layer in found.layers) / 4)
    assert found.realised == pytest.approx(found.flop_ratio / found.latency_ratio)
    assert found.not_measured == 1


def test_regions_count_equally():
    both = plan(PIXART, 2, [[1024, 256]] * 28, H200)
    each = [plan(PIXART, 2, count, H200) for count in (1024, 256)]
    assert both.latency_ratio == pytest.approx(sum(one.latency_ratio for one in each) / 2)
    assert both.flop_ratio == pytest.approx(sum(one.flop_ratio for one in each) / 2)


def test_text_projected_in_every_step_costs_on_both_sides():
    cached, again = (plan(PIXART, 2, 512, H200, cache_text_kv=cache) for cache in (True, False))
    more = 2 * 4 * 1152**2 * 300
    assert again.layers[0].flops - cached.layers[0].flops == more
    assert again.dense_flops - cached.dense_flops == more
    assert again.latency_ratio > cached.latency_ratio


def test_break_even_is_the_last_tenth_at_which_a_routed_block_is_no_slower():
    found = plan(PIXART, 16, 512, H200)
    assert 0.5 < found.break_even < 1
    tenths = round(10 * found.break_even)
    at, above = (plan(PIXART, 16, kept_tokens(n, 1024), H200).latency_ratio for n in (tenths, tenths + 1))
    assert at <= 1 < above


def test_what_is_promised_holds_for_all_smaller_counts():
    """Slow at 4 and 5 tenths, fast again from 6 on."""

    class Odd:
        title, itemsize = "odd", 2

        def seconds(self, operator, shape, kept, batch):
            part = kept / shape.tokens
            return (9.0 if 0.35 < part < 0.55 else part), "measured"

    assert plan(SMALL, 1, 64, Odd()).break_even == 0.3


def test_a_launch_bound_block_does_not_pay():
    found = plan(replace(SMALL, tokens=16), 1, 12, H200)
    assert found.latency_ratio > 1 and found.break_even == 0
    assert found.verdict.startswith("does not pay") and "no kept count" in found.verdict
    assert plan(PIXART, 16, 512, H200).verdict.startswith("pays: 50% of the blocks' time saved")


def test_seconds_are_the_larger_of_flops_and_bytes_and_the_launches():
    slow = replace(H200, bandwidth=H200.bandwidth / 2)
    for operator, factor in (("adaln", 2), ("mlp", 1)):
        fast, slower = (d.seconds(operator, PIXART, 512, 16)[0] for d in (H200, slow))
        launches = H200.launch_seconds * (2 if operator == "mlp" else 1)
        assert slower - launches == pytest.approx(factor * (fast - launches))
    assert H200.seconds("gate_residual", PIXART, 1, 1)[0] == pytest.approx(H200.launch_seconds, rel=0.01)


def test_a_device_without_a_rate_is_refused():
    with pytest.raises(ValueError, match="bandwidth: 0 must be positive"):
        replace(H200, bandwidth=0)


def test_the_plan_is_plain_json():
    report = json.loads(json.dumps(plan(SMALL, 2, [[64, 20]] * 4, H200).to_dict()))
    assert report["title"].startswith("predicted for NVIDIA H200 from its datasheet")
    assert report["title"].endswith("not measured")
    assert report["layers"][3]["kept"] == [64, 20] and report["layers"][3]["seconds"] > 0
    assert report["latency_ratio"] > 0 and report["not_measured"] == 1


@pytest.mark.parametrize(
    ("batch", "kept", "message"),
    [
        (0, 5, "batch: 0 must be a positive integer"),
        (True, 5, "batch: True must be"),
        (1, 65, "kept: 65 is not an integer from 0 to 64"),
        (1, [1, 2], "kept: 2 rows for 4 layers"),
        (1, [1, 2, 3, -1], "kept: -1 is not"),
        (1, [[]] * 4, "kept: every layer needs the same number of regions, at least one"),
        (1, "1234", "kept: '1234' is neither"),
        (1, 0.5, "kept: 0.5 is neither"),
    ],
)
def test_bad_arguments_are_named(batch, kept, message):
    with pytest.raises(ValueError, match=message):
        plan(SMALL, batch, kept, H200)
