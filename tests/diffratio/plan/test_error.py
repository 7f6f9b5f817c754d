"""The prediction error of blocks whose true times are known."""

import json

import pytest

from diffratio.plan import prediction_error


def test_a_block_that_is_the_sum_of_its_steps_has_no_error(synthetic):
    rows = synthetic.operator_rows(2, 1024) + synthetic.block_rows(2, 1024)
    found = prediction_error(rows)
    assert len(found.blocks) == 5
    assert found.summary() == pytest.approx(
        {"median": 0, "worst": 0, "ratio_median": 0, "ratio_worst": 0, "spread": 0.04}, abs=1e-9
    )


def test_a_block_with_joined_products_is_the_sum_of_joined_steps(synthetic):
    subjects = ("linear fc1", "linear_gate_residual", "linear_scatter")
    joined = [synthetic.operator_row(one, 2, 1024, kept) for one in subjects for kept in (1.0, 0.3)]
    # down to 0.2, because the gather of such a block writes less
    rows = synthetic.operator_rows(2, 1024, (1.0, 0.8, 0.7, 0.5, 0.3, 0.2)) + joined
    blocks = synthetic.block_rows(2, 1024, is_one_kernel=lambda step: True)
    assert prediction_error(rows + blocks).summary()["worst"] == pytest.approx(0, abs=1e-9)
    assert prediction_error(synthetic.operator_rows(2, 1024) + blocks).summary()["worst"] > 0.01


def test_a_slower_block_shows_in_the_seconds_and_not_in_the_ratios(synthetic):
    rows = synthetic.operator_rows(2, 1024) + synthetic.block_rows(2, 1024, factor=1.25)
    found = prediction_error(rows).summary()
    assert found["median"] == pytest.approx(0.2) and found["ratio_worst"] == pytest.approx(0)


def test_one_wrong_block_is_the_worst_and_not_the_median(synthetic):
    rows = synthetic.operator_rows(2, 1024) + synthetic.block_rows(2, 1024)
    rows[-1]["seconds"] *= 2
    found = prediction_error(rows)
    assert found.summary()["worst"] == pytest.approx(0.5) and found.summary()["median"] == pytest.approx(0)
    wrong = found.blocks[-1]
    assert wrong.ratio_error == pytest.approx(wrong.predicted_ratio - 2 * wrong.predicted_ratio)


def test_left_out_rows_are_not_read(synthetic):
    """Wrong operator times at one kept ratio: seen, its own block is wrong; left out, it is right again."""
    rows = synthetic.operator_rows(2, 1024) + synthetic.block_rows(2, 1024)
    for row in rows:
        if row["level"] == "operator" and row["kept"] == 0.7:
            row["seconds"] *= 3
    errors = {left_out: {block.kept: block.error for block in prediction_error(rows, left_out).blocks}
              for left_out in (False, True)}  # fmt: skip
    assert errors[False][0.7] == pytest.approx(2)
    assert errors[True][0.7] == pytest.approx(0, abs=1e-9)
    assert errors[False][0.5] == pytest.approx(0, abs=1e-9)


def test_left_out_ends_are_scaled_and_honest(synthetic):
    rows = synthetic.operator_rows(2, 1024) + synthetic.block_rows(2, 1024)
    errors = {block.kept: abs(block.error) for block in prediction_error(rows, left_out=True).blocks}
    assert errors[0.5] < 1e-9 < 0.01 < errors[0.3]


def test_each_implementation_is_predicted_from_its_own_rows(synthetic):
    rows = synthetic.operator_rows(2, 1024) + synthetic.block_rows(2, 1024)
    slow = [row | {"name": "cuda", "seconds": 4 * row["seconds"]} for row in synthetic.operator_rows(2, 1024)
            if not row["subject"].startswith("linear")]  # fmt: skip
    blocks = synthetic.block_rows(2, 1024, name="mod_block cuda", factor=4)
    errors = {}
    for block in prediction_error(rows + slow + blocks).blocks:
        errors.setdefault(block.name, []).append(block.error)
    assert max(map(abs, errors["mod_block triton"])) < 1e-9
    assert all(-0.5 < error < 0 for error in errors["mod_block cuda"])


def test_without_a_dense_row_there_are_no_ratios(synthetic):
    rows = synthetic.operator_rows(2, 1024) + synthetic.block_rows(2, 1024, (0.5,))
    found = prediction_error(rows)
    assert found.blocks[0].ratio_error is None and found.summary()["ratio_worst"] is None
    assert json.loads(json.dumps(found.to_dict()))["blocks"][0]["ratio"] is None


def test_without_blocks_there_is_no_error(synthetic):
    assert prediction_error(synthetic.operator_rows(2, 1024)) is None
