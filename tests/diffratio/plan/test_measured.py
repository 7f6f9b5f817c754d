"""Times between measurements, at other sizes, and where there are none."""

import pytest

from diffratio.evaluation.flops import TransformerShape, block_steps
from diffratio.plan import Measured, plan

SHAPE = TransformerShape(3, 128, 4, 1024, 16)


@pytest.fixture
def table(synthetic):
    return Measured(synthetic.operator_rows(2, 1024) + synthetic.peak_rows())


def test_a_linear_law_is_found_between_its_points(table, synthetic):
    for kept in (308, 512, 600, 1024):
        for step in block_steps(SHAPE, kept, cache_text_kv=True):
            seconds, origin = table.seconds(step.operator, SHAPE, kept, 2)
            assert origin == "measured", step.name
            assert seconds == pytest.approx(synthetic.law(step.operator, 1024, kept, 2)), step.name


def test_outside_it_is_the_rate_of_the_nearest_and_marked(table, synthetic):
    few, origin = table.seconds("linear out", SHAPE, 100, 2)
    assert few == pytest.approx(synthetic.law("linear out", 1024, 308, 2) * 100 / 308) and origin == "scaled"
    many, origin = table.seconds("linear out", SHAPE, 1024, 64)
    assert many == pytest.approx(32 * synthetic.law("linear out", 1024, 1024, 2)) and origin == "scaled"


def test_the_nearest_batch_and_tokens_are_preferred(synthetic):
    far = [row | {"seconds": 100 * row["seconds"]} for row in synthetic.operator_rows(4, 256)]
    table = Measured(far + synthetic.operator_rows(1, 1024) + synthetic.peak_rows())
    seconds, origin = table.seconds("linear qkv", SHAPE, 600, 1)
    assert (seconds, origin) == (pytest.approx(synthetic.law("linear qkv", 1024, 600, 1)), "measured")


def test_another_width_is_scaled(table):
    wide = TransformerShape(3, 256, 4, 1024, 16)
    assert table.seconds("mlp", wide, 600, 2)[1] == "scaled"


def test_an_operator_without_rows_is_predicted_from_the_peaks(synthetic):
    rows = [row for row in synthetic.operator_rows(2, 1024) if row["subject"] != "mlp"]
    table = Measured(rows + synthetic.peak_rows())
    wide = TransformerShape(1, 2048, 4, 1024, 16)
    seconds, origin = table.seconds("mlp", wide, 600, 64)
    assert origin == "predicted"
    assert seconds == pytest.approx(16 * 64 * 600 * 2048**2 / 5e14, rel=0.01)


def test_peaks_alone_are_enough(synthetic):
    found = plan(SHAPE, 64, 512, Measured(synthetic.peak_rows()))
    assert found.not_measured == 1 and 0.4 < found.latency_ratio < 0.8


def test_without_peaks_both_suites_are_named(synthetic):
    everything = [synthetic.block_row()], synthetic.operator_rows(2, 1024), synthetic.peak_rows()[:1], []
    for rows in everything:
        with pytest.raises(
            ValueError, match="^rows: no peak .*`diffratio bench peak` and `diffratio bench op"
        ):
            Measured(rows)


def test_the_fastest_of_our_backends_counts_or_plain_pytorch(synthetic):
    times = {"triton": 5e-6, "cuda": 4e-6, "torch eager": 1e-6, "reference": 2e-6}
    rows = [synthetic.operator_row("adaln", 2, 1024, 1.0, name=n, seconds=s) for n, s in times.items()]
    for first, seconds in ((0, 4e-6), (2, 1e-6), (3, 2e-6)):
        table = Measured(rows[first:] + synthetic.peak_rows())
        assert table.seconds("adaln", SHAPE, 1024, 2) == (seconds, "measured")


def test_a_graph_with_a_cold_cache_is_preferred(synthetic):
    ways = (("eager", "cold", 9e-6), ("graph", "warm", 2e-6), ("graph", "cold", 3e-6))
    rows = [synthetic.operator_row("adaln", 2, 1024, 1.0, mode=m, cache=c, seconds=s) for m, c, s in ways]
    for order in (rows, rows[::-1]):
        table = Measured(order + synthetic.peak_rows())
        assert table.seconds("adaln", SHAPE, 1024, 2)[0] == 3e-6


def test_refused_rows_and_other_devices_and_dtypes_are_left_out(synthetic):
    rows = synthetic.operator_rows(2, 1024) + synthetic.peak_rows()
    refused = {k: v for k, v in rows[0].items() if k != "seconds"} | {"refused": "no GPU"}
    others = [row | {"seconds": 1e-9} | change for row in rows[:9]
              for change in ({"device": "Other"}, {"dtype": "float32"}, {"threads": 7})]  # fmt: skip
    table = Measured([refused, *others, *rows])
    assert table.rows == rows and table.itemsize == 2


def test_the_title_says_what_was_measured(table, synthetic):
    assert table.title == "measured on Test GPU, bfloat16, 2026-01-02, abc1234"
    cpu = [row | {"capability": None} for row in synthetic.peak_rows()]
    assert Measured(cpu).title.startswith("measured on Test GPU, 1 thread, bfloat16")
