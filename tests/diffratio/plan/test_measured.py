"""Times between measurements, outside of them, and where there are none."""

from dataclasses import replace

import pytest

from diffratio.flops import TransformerShape
from diffratio.plan import Measured, plan, shipped
from diffratio.plan import measured as module
from diffratio.plan.steps import ROW_STEPS, Sizes, routed_steps, step
from diffratio_kernels.kernels.triton import config

SHAPE = TransformerShape(3, 128, 4, 1024, 16)


def sizes(batch=2, tokens=1024, kept=600, width=128, text=16):
    return Sizes(batch, tokens, kept, width, 4, text, 4 * width, width, 2)


@pytest.fixture
def table(synthetic):
    return Measured(synthetic.operator_rows(2, 1024) + synthetic.peak_rows())


def test_a_linear_law_is_found_between_its_points(table, synthetic):
    for kept in (308, 512, 600, 1024):
        for one in routed_steps(sizes(kept=kept)):
            cost = table.cost(one)
            assert cost.origin == "measured", one.name
            assert cost.seconds == pytest.approx(synthetic.seconds_of(one)), one.name


def test_outside_it_is_the_rate_of_the_nearest_and_marked(table, synthetic):
    few, most, small, all_tokens = (step("linear out", sizes(b, kept=k))
                                    for b, k in ((2, 100), (64, 1024), (2, 308), (2, 1024)))  # fmt: skip
    assert {table.cost(one).origin for one in (few, most)} == {"scaled"}
    assert table.cost(most).seconds == pytest.approx(32 * synthetic.seconds_of(all_tokens))
    fixed = table.peaks.launch_seconds
    rest = (synthetic.seconds_of(small) - fixed) * 100 / 308
    assert table.cost(few).seconds == pytest.approx(fixed + rest)


def test_between_two_batches_both_are_used(synthetic):
    table = Measured(synthetic.operator_rows(1, 1024) + synthetic.operator_rows(16, 1024))
    one = step("mlp", sizes(batch=4))
    assert table.cost(one).origin == "measured"
    assert table.cost(one).seconds == pytest.approx(synthetic.seconds_of(one))


def test_the_nearest_batch_and_tokens_are_preferred(synthetic):
    far = [row | {"seconds": 100 * row["seconds"]} for row in synthetic.operator_rows(4, 256)]
    table = Measured(far + synthetic.operator_rows(1, 1024))
    one = step("linear qkv", sizes(batch=1))
    assert table.cost(one).seconds == pytest.approx(synthetic.seconds_of(one))


def test_another_width_is_scaled(table):
    assert table.cost(step("mlp", sizes(width=256))).origin == "scaled"


def test_an_operator_without_rows_is_predicted_from_the_peaks(synthetic):
    rows = [row for row in synthetic.operator_rows(2, 1024) if row["subject"] != "mlp"]
    table = Measured(rows + synthetic.peak_rows())
    one = step("mlp", sizes(batch=64, width=2048))
    assert table.cost(one).origin == "predicted"
    assert table.cost(one).seconds == pytest.approx(one.flops / 5e14 / 0.95, rel=0.05)
    with pytest.raises(ValueError, match="rows: neither 'mlp' nor the peaks .* were measured on Test GPU"):
        Measured(rows).cost(one)


JOINED = ("linear fc1", "linear_gate_residual", "linear_scatter")


def joined_rows(synthetic, subjects=JOINED, **more):
    return [
        synthetic.operator_row(subject, 2, 1024, kept, **more) for subject in subjects for kept in (1, 0.5)
    ]


def names(rows):
    costs = plan(SHAPE, 2, 600, Measured(rows)).routed_costs
    return [cost.step.name for cost in costs if cost.step.operator in ROW_STEPS]


def test_measured_products_that_end_in_the_residual_stream_are_used(synthetic):
    rows, joined = synthetic.operator_rows(2, 1024), joined_rows(synthetic, name="torch + cuda")
    faster = [row | {"name": "triton", "seconds": row["seconds"] / 2} for row in joined]
    assert names(rows) == []
    assert names(rows + joined) == [
        "out + gate_residual",
        "cross out + cross residual",
        "fc2 + scatter_rescale",
    ]
    source = Measured(rows + joined + faster)
    for one in routed_steps(sizes(), is_one_kernel=source.is_one_kernel):
        cost, seconds = source.cost(one), synthetic.seconds_of(one)
        assert cost.origin == "measured", one.name
        assert cost.seconds == pytest.approx(seconds / 2 if one.operator in JOINED else seconds), one.name


def test_measured_steps_that_hand_logits_over_are_used(synthetic):
    rows = synthetic.operator_rows(2, 1024)
    handed = joined_rows(synthetic, ("select", "scatter_rescale_next"))

    def operators(rows):
        found = plan(replace(SHAPE, layers=5), 2, 600, Measured(rows))
        return [cost.step.operator for cost in found.routed_costs]

    assert {"select", "scatter_rescale_next"} < set(operators(rows + handed))
    for missing in (rows, rows + handed[:2], [row | {"capability": None} for row in rows + handed]):
        assert {"route", "scatter_rescale"} < set(operators(missing))


def test_without_fc1_alone_the_mlp_stays_one_step(synthetic):
    rows = synthetic.operator_rows(2, 1024) + joined_rows(synthetic, JOINED[1:])
    assert names(rows) == ["out + gate_residual", "cross out + cross residual"]


@pytest.mark.parametrize("change", [{"capability": None}, {"dtype": "float32"}])
def test_on_a_cpu_and_in_fp32_products_and_row_steps_stay_apart(synthetic, change):
    rows = synthetic.operator_rows(2, 1024) + joined_rows(synthetic) + synthetic.peak_rows()
    assert names([row | change for row in rows]) == []
    assert names([row | change for row in synthetic.peak_rows()]) == []


def test_peaks_alone_follow_the_table_of_tiles(synthetic):
    rows = synthetic.peak_rows()
    for capability, architecture in (("8.6", 80), ("9.0", 90), ("10.0", 90), ("12.0", 80), (None, None)):
        peaks = Measured([row | {"capability": capability} for row in rows]).peaks
        assert peaks.architecture == architecture
    assert names(rows)[:2] == ["out + gate_residual", "cross out + cross residual"]
    fused = Measured(rows).is_one_kernel(step("linear_scatter", sizes()))
    assert fused == (config.nearest("linear_scatter", 90, 128, 1200, 512).of_library < 1)


def test_peaks_alone_are_enough(synthetic):
    found = plan(SHAPE, 64, 512, Measured(synthetic.peak_rows()))
    assert found.origins == {"predicted"} and 0.4 < found.latency_ratio < 0.8


def test_the_fastest_of_our_implementations_counts_or_plain_pytorch(synthetic):
    times = {"triton": 5e-6, "cuda": 4e-6, "torch eager": 1e-6, "reference": 2e-6}
    rows = [synthetic.operator_row("adaln", 2, 1024, 1.0, name=n, seconds=s) for n, s in times.items()]
    one = step("adaln", sizes(kept=1024))
    assert Measured(rows).cost(one).seconds == 4e-6
    assert Measured(rows, "triton").cost(one).seconds == 5e-6
    assert Measured(rows, "native").cost(one).seconds == 4e-6
    assert Measured(rows[2:]).cost(one).seconds == 1e-6
    assert Measured(rows[3:]).cost(one).seconds == 2e-6


def test_a_graph_with_a_cold_cache_is_preferred(synthetic):
    ways = (("eager", "cold", 9e-6), ("graph", "warm", 2e-6), ("graph", "cold", 3e-6))
    rows = [synthetic.operator_row("adaln", 2, 1024, 1.0, mode=m, cache=c, seconds=s) for m, c, s in ways]
    for order in (rows, rows[::-1]):
        assert Measured(order).cost(step("adaln", sizes(kept=1024))).seconds == 3e-6


def test_refused_rows_and_other_devices_and_dtypes_are_left_out(synthetic):
    rows = synthetic.operator_rows(2, 1024)
    refused = {k: v for k, v in rows[0].items() if k != "seconds"} | {"refused": "no GPU"}
    others = [row | {"seconds": 1e-9} | change for row in rows[:9]
              for change in ({"device": "Other"}, {"dtype": "float32"}, {"threads": 7})]  # fmt: skip
    table = Measured([refused, *others, *rows])
    assert (table.name, table.dtype, table.itemsize) == ("Test GPU", "bfloat16", 2)
    assert len(table.rows) == len(rows) and {row["threads"] for row in table.rows} == {1}


def test_the_title_says_what_was_measured(table, synthetic):
    assert table.title == "measured on Test GPU, bfloat16, 2026-01-02, abc1234"
    cpu = [row | {"capability": None} for row in synthetic.peak_rows()]
    assert Measured(cpu).title.startswith("measured on Test GPU, 1 thread, bfloat16")


def test_a_plan_is_compared_with_the_compiled_dense_block(synthetic):
    rows = synthetic.operator_rows(2, 1024)
    for name, factor in (("dense, compiled", 1.2), ("dense, compiled, cudnn", 1.1), ("diffusers dense", 0.5)):
        rows += synthetic.block_rows(2, 1024, (1.0,), name, factor)
    fastest = rows[-2]["seconds"]
    assert plan(SHAPE, 2, 512, Measured(rows)).compiled_seconds == fastest
    assert plan(SHAPE, 4, 512, Measured(rows)).compiled_seconds is None


def test_without_rows_there_is_no_table(synthetic):
    with pytest.raises(ValueError, match="rows: no operator and no peak was measured"):
        Measured(synthetic.block_rows(2, 1024))
    with pytest.raises(ValueError, match="rows: no operator and no peak"):
        Measured(synthetic.peak_rows()[:1])


def test_a_table_that_comes_with_the_package_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TABLES", tmp_path)
    assert shipped("h200") is None
    (tmp_path / "h200.jsonl").write_text("{}")
    assert shipped("h200") == tmp_path / "h200.jsonl"
