"""The prediction error of blocks whose true times are known."""

import pytest

from benchmarks.performance.prediction import prediction_error
from diffratio.evaluation.flops import TransformerShape, block_steps, step_cost
from diffratio_kernels import kept_tokens

KEPT = (1.0, 0.8, 0.7, 0.5, 0.3)
COMMON = {
    "device": "Test GPU", "capability": "9.0", "dtype": "bfloat16", "threads": 1, "batch": 2, "tokens": 1024,
    "width": 128, "heads": 4, "text": 16, "mode": "graph", "cache": "cold",
}  # fmt: skip
STEPS = [
    step.operator for step in block_steps(TransformerShape(1, 128, 4, 1024, 16), 512, cache_text_kv=True)
]


def law(operator, kept):
    """Seconds: a fixed part, and 300 TFLOP/s or 1 TB/s."""
    count = kept_tokens(round(10 * kept), 1024)
    cost = step_cost(operator, TransformerShape(1, 128, 4, 1024, 16), count, batch=2)
    computes = operator == "mlp" or "linear" in operator or "attention" in operator
    return 3e-6 + (cost.flops / 3e14 if computes else cost.bytes / 1e12)


def operator_rows(name="triton", factor=1.0):
    """Operators at every kept ratio, and the peaks that a plan needs."""
    peaks = [("matmul", {"flops": 2**40, "seconds": 2e-3}), ("copy", {"bytes": 2**30, "seconds": 5e-4})]
    rows = [
        COMMON | {"suite": "peak", "subject": subject, "name": "torch", **figures}
        for subject, figures in peaks
    ]
    for operator in dict.fromkeys(STEPS):
        for kept in KEPT:
            row = {"suite": "operator", "subject": operator, "name": name, "kept": kept}
            rows.append(COMMON | row | {"seconds": factor * law(operator, kept)})
    return rows


def block_rows(ratios=KEPT, name="mod_block triton", factor=1.0):
    row = {"suite": "block", "subject": "PixArt block", "name": name}
    return [
        COMMON | row | {"kept": kept, "seconds": factor * sum(law(step, kept) for step in STEPS)}
        for kept in ratios
    ]


def test_a_block_that_is_the_sum_of_its_steps_has_no_error():
    found = prediction_error(operator_rows() + block_rows())
    assert len(found.blocks) == 5
    nothing = dict.fromkeys(("median", "worst", "ratio_median", "ratio_worst"), 0)
    assert found.summary() == pytest.approx(nothing, abs=1e-9)


def test_a_slower_block_shows_in_the_seconds_and_not_in_the_ratios():
    found = prediction_error(operator_rows() + block_rows(factor=1.25)).summary()
    assert found["median"] == pytest.approx(0.2) and found["ratio_worst"] == pytest.approx(0)


def test_one_wrong_block_is_the_worst_and_not_the_median():
    rows = operator_rows() + block_rows()
    rows[-1]["seconds"] *= 2
    found = prediction_error(rows)
    assert found.summary()["worst"] == pytest.approx(0.5) and found.summary()["median"] == pytest.approx(0)
    wrong = found.blocks[-1]
    assert wrong.ratio_error == pytest.approx(wrong.predicted_ratio - 2 * wrong.predicted_ratio)


def test_left_out_rows_are_not_read():
    """Wrong operator times at one kept ratio: seen, its own block is wrong; left out, it is right again."""
    rows = operator_rows() + block_rows()
    for row in rows:
        if row["suite"] == "operator" and row["kept"] == 0.7:
            row["seconds"] *= 3
    errors = {left_out: {block.kept: block.error for block in prediction_error(rows, left_out).blocks}
              for left_out in (False, True)}  # fmt: skip
    assert errors[False][0.7] == pytest.approx(2)
    assert errors[True][0.7] == pytest.approx(0, abs=1e-9)
    assert errors[False][0.5] == pytest.approx(0, abs=1e-9)


def test_left_out_ends_are_scaled_and_honest():
    found = prediction_error(operator_rows() + block_rows(), left_out=True)
    errors = {block.kept: abs(block.error) for block in found.blocks}
    assert errors[0.5] < 1e-9 < 0.01 < errors[0.3]


def test_each_backend_is_predicted_from_its_own_rows():
    slow = [row for row in operator_rows("cuda", 4) if not row["subject"].startswith("linear")]
    rows = operator_rows() + slow + block_rows() + block_rows(name="mod_block cuda", factor=4)
    errors = {}
    for block in prediction_error(rows).blocks:
        errors.setdefault(block.name, []).append(block.error)
    assert max(map(abs, errors["mod_block triton"])) < 1e-9
    assert all(-0.5 < error < 0 for error in errors["mod_block cuda"])


def test_without_a_dense_row_there_are_no_ratios():
    found = prediction_error(operator_rows() + block_rows((0.5,)))
    assert found.blocks[0].ratio_error is None and found.summary()["ratio_worst"] is None


def test_without_blocks_or_peaks_there_is_no_error():
    assert prediction_error(operator_rows()) is None
    assert prediction_error(operator_rows()[2:] + block_rows()) is None
