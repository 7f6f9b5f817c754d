"""The reproduction's bookkeeping: which results count, and what its tables count in them."""

import json

import pytest

from benchmarks.reproduction import plan, tables


def result(run, error, ratios):
    kept = sum(map(sum, ratios)) / sum(map(len, ratios))
    quality = {
        "v_mse": error,
        "frechet": error,
        "accuracy_joint": 1 - error,
        "accuracy_mean": 1 - error,
    }
    return vars(run) | {
        "quality": quality,
        "mean_kept_in_bins": kept,
        "flops_of_dense": kept,
        "ratios": [{"step": 300, "ratios": ratios}],
    }


def results(error):
    """Per method the results of three seeds; error(run): what its quality is made of."""
    found = {}
    for run in plan.all_runs():
        kept = 1 - run.target
        ratios = [[kept + 0.1, kept], [kept, kept - 0.1]]  # layers differ, the cleaner region keeps more
        found.setdefault((run.dataset, run.method, run.target), []).append(result(run, error(run), ratios))
    return found


def claims(runs):
    rows = [line.strip("| ").split(" | ") for line in tables.claims_table(runs)[2:-1]]
    return dict(rows)


def test_claims_are_counted_seed_by_seed():
    """L is better than MoD in the first seed alone, though its mean over seeds is better."""
    worse = {"mod": 0.5, "l": 0.4, "lt": 0.3, "dense": 0.1}
    found = claims(results(lambda run: worse[run.method] + (run.method == "l" and run.seed > 0) * 0.11))
    pairs = len(plan.DATASETS) * len(plan.TARGETS) * len(plan.SEEDS)
    assert found["DiffRatio-L better than uniform MoD"].startswith(f"v-MSE {pairs // 3} of {pairs}")
    assert found["DiffRatio-LT better than DiffRatio-L"].startswith(f"v-MSE {pairs} of {pairs}")
    assert found["layers differ (deviation above 0.01)"] == f"{2 * pairs} of {2 * pairs}"
    assert found["mean ratio within 1 point of the target"].startswith(f"{2 * pairs} of {2 * pairs} runs")
    assert found["the cleanest region keeps most, the noisiest less"].startswith(f"{pairs} of {pairs} LT")


def test_a_missed_target_is_counted_as_missed():
    runs = results(lambda run: 0.1)
    runs["digits", "l", 0.2][1]["ratios"][0]["ratios"] = [[0.9, 0.9], [0.8, 0.8]]
    assert "largest gap 5.00 points" in claims(runs)["mean ratio within 1 point of the target"]


def test_results_of_another_start_are_not_done(tmp_path, monkeypatch):
    path = tmp_path / "digits-l-20-seed0.json"
    assert not plan.is_done(path, "digits")
    path.write_text(json.dumps({"setup": plan.setup("digits")}))
    assert plan.is_done(path, "digits") and not plan.is_done(path, "shapes")
    monkeypatch.setitem(plan.TRAINING, "learning_rate", 1e-3)
    plan.setup.cache_clear()
    assert not plan.is_done(path, "digits")
    monkeypatch.undo()
    plan.setup.cache_clear()


def test_tables_want_every_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="not complete"):
        tables.main()
