"""The reproduction's bookkeeping: which results count, and what its tables count in them."""

import json
import subprocess

import pytest
import torch

from benchmarks.harness.options import Options
from benchmarks.reproduction import figure, latency, plan, tables, twins
from benchmarks.reproduction import run as command
from benchmarks.suites.model import Models
from diffratio.evaluation.flops import TransformerShape
from diffratio.evaluation.flops.counted import Counting
from diffratio.train import TrainArguments
from diffratio.train.controller import RAMP


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


def results(error, methods=("dense", "mod", "l", "lt")):
    """Per method the results of its seeds; error(run): what its quality is made of."""
    found = {}
    for run in plan.all_runs():
        if run.method in methods:
            kept = 1 - run.target
            ratios = [[kept + 0.1, kept], [kept, kept - 0.1]]  # layers differ, the cleaner region keeps more
            one = result(run, error(run), ratios)
            found.setdefault((run.dataset, run.method, run.target), []).append(one)
    return found


def rows(lines):
    """The cells of a table, by the first of each row."""
    cells = [line.strip("| ").split(" | ") for line in lines[2:-1]]
    return {first: rest for first, *rest in cells}


PAIRS = len(plan.DATASETS) * len(plan.TARGETS) * len(plan.SEEDS)


def test_systems_are_compared_seed_by_seed():
    """L is better than MoD in the first seed alone, though its mean over seeds is better."""
    worse = {"mod": 0.5, "l": 0.4, "lt": 0.3, "dense": 0.1}
    runs = results(lambda run: worse[run.method] + (run.method == "l" and run.seed > 0) * 0.11)
    runs["digits", "l", 0.2][1]["flops_of_dense"] *= 1.01
    found = rows(tables.pairs_table(runs))
    some, every = f"{PAIRS // 3} of {PAIRS}", f"{PAIRS} of {PAIRS}"
    assert found["DiffRatio-L than uniform MoD"] == ["+0.0 to +1.0 % (not equal)", some, some, some]
    assert found["DiffRatio-LT than uniform MoD"] == ["+0.0 to +0.0 % (equal)", every, every, every]
    assert found["DiffRatio-LT than DiffRatio-L"][0].startswith("-1.0 to +0.0 %")
    assert "DiffRatio-LT than growing MoD, cleanest region dense" not in found


def test_every_seed_meets_the_one_run_that_is_not_trained():
    runs = results(lambda run: 0.3 + (run.method == "lt") * 0.1 * run.seed, ("lt", "tome-all"))
    assert {len(runs[name, "tome-all", 0.2]) for name in plan.DATASETS} == {1}
    found = rows(tables.pairs_table(runs))["DiffRatio-LT than ToMe in both, not trained"]
    assert found[1:] == [f"0 of {PAIRS}"] * 3


def test_claims_are_counted():
    found = rows(tables.claims_table(results(lambda run: 0.1, ("l", "lt", "paper"))))
    assert found["layers differ (deviation above 0.01)"] == [f"{2 * PAIRS} of {2 * PAIRS}"]
    target = found["mean ratio within 1 point of the target, by construction"]
    assert target == [f"{2 * PAIRS} of {2 * PAIRS} runs, largest gap 0.00 points"]
    assert found["the cleanest region keeps most, the noisiest less"][0].startswith(f"{PAIRS} of {PAIRS} LT")


def test_a_missed_target_is_counted_as_missed():
    runs = results(lambda run: 0.1, ("l", "lt", "paper"))
    for method in ("l", "paper"):
        runs["digits", method, 0.2][1]["ratios"][0]["ratios"] = [[0.9, 0.9], [0.8, 0.8]]
    found = rows(tables.claims_table(runs))
    target = found["mean ratio within 1 point of the target, by construction"]
    assert target[0].endswith("largest gap 5.00 points")
    recipe = found["the same by the paper's own recipe"]
    assert recipe == [f"{PAIRS - 1} of {PAIRS} runs, gaps of +0.0 to +5.0 points"]


def test_rows_tell_their_seeds_and_what_is_missing_is_named(monkeypatch, tmp_path):
    runs = results(lambda run: 0.1, ("dense", "mod", "tome-all"))
    del runs["digits", "mod", 0.3][1:]
    runs["digits", "tome-all", 0.2][0] |= {"mean_kept_in_bins": None, "ratios": []}
    start = result(plan.Run("digits", "dense", 0.0, 0), 0.1, [[1.0]])
    found = rows(tables.quality_table("digits", start | {"real": start["quality"]}, runs)[1:])
    assert list(found) == [
        *("real held-out images", "dense, before", "dense, the same steps", "uniform MoD, 20%"),
        *("ToMe in both, not trained, 20%", "uniform MoD, 30%", "ToMe in both, not trained, 30%"),
    ]
    assert (found["uniform MoD, 20%"][0], found["uniform MoD, 30%"][0]) == ("3", "1")
    assert found["ToMe in both, not trained, 20%"][1:3] == ["", ""]
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    [line, _] = tables.missing_lines()
    assert "uniform MoD (12 of 12 runs)" in line and "AT-EDM, not trained (4 of 4 runs)" in line


def test_the_excess_of_the_cleanest_quarter_is_a_share_of_all():
    runs = results(lambda run: 0.1, ("dense", "mod"))
    for (_, method, _), found in runs.items():
        for seed, one in enumerate(found):
            quarters = [0.1, 0.2, 0.3, 0.4] if method == "dense" else [0.4 + seed, 0.3, 0.3, 0.4]
            one["quality"]["v_mse_by_quartile"] = quarters
    found = rows(tables.quarters_table(runs))
    assert found["digits dense, the same steps"] == ["0.1000", "0.2000", "0.3000", "0.4000"]
    assert found["shapes uniform MoD 20%"] == ["1.4000", "0.3000", "0.3000", "0.4000", "93%"]


def test_results_of_another_start_are_not_done(tmp_path, monkeypatch):
    path = tmp_path / "digits-l-20-seed0.json"
    assert not plan.is_done(path, plan.setup("digits"))
    path.write_text(json.dumps({"setup": plan.setup("digits")}))
    assert plan.is_done(path, plan.setup("digits")) and not plan.is_done(path, plan.setup("shapes"))
    assert plan.is_done(path, plan.setup("digits", "lt"))
    assert not plan.is_done(path, plan.setup("digits", "paper"))
    monkeypatch.setitem(plan.TRAINING, "learning_rate", 1e-3)
    plan.setup.cache_clear()
    assert not plan.is_done(path, plan.setup("digits"))
    monkeypatch.undo()
    plan.setup.cache_clear()


def test_tables_want_a_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="has not begun: digits-start.json, shapes-start.json"):
        tables.main()


def test_what_is_trained_is_what_the_command_takes():
    trained = [run for run in plan.all_runs([3]) if run.method in plan.SYSTEMS]
    for run in trained:
        arguments = TrainArguments(**run.training, output_dir="out")
        assert arguments.seed == 3 and arguments.max_train_steps == plan.STEPS
        assert abs(arguments.target_compression - run.target) < 0.01
    assert {run.method for run in trained} == set(plan.SYSTEMS)


def test_systems_of_one_budget_differ_as_their_names_say():
    one = {method: plan.Run("shapes", method, 0.3, 0).training for method in plan.SYSTEMS}
    clean = TrainArguments(**one["mod-clean"])
    assert clean.tenths_by_region == [10, 6, 6, 6] and clean.ramp == RAMP
    assert one["mod-ramp"].items() - one["mod"].items() == {("ramp", RAMP)}
    paper = TrainArguments(**one["paper"])
    assert (paper.method, paper.fixed_ratio_weight(), paper.ratio_mode) == ("lt", 0.3, "faithful")


def asked(*words):
    return [run.name for run in command.chosen(command.parser().parse_args(words))]


def test_one_command_makes_one_run_with_another_seed():
    one = ["--dataset", "shapes", "--method", "lt", "--target", "0.2"]
    assert asked(*one, "--seed", "3") == ["shapes-lt-20-seed3"]
    assert asked(*one) == [f"shapes-lt-20-seed{seed}" for seed in plan.SEEDS]
    assert len(asked()) == len(plan.all_runs()) + len(twins.all_repaints())
    assert asked("--method", "dense", "--target", "0.2") == []


def test_one_command_makes_one_run_that_repaints():
    assert asked("--system", "lazy", "--method", "lt", "--seed", "3") == ["twins-lazy-lt-30-seed3"]
    assert asked("--dataset", "twins", "--method", "start") == [
        f"twins-{system}-start" for system in ("lazy", "image", "crop")
    ]


def test_what_is_not_trained_is_judged_by_the_command(monkeypatch):
    report = {"quality": {"v_mse": 1}, "cost": {"dense": {"gflop": 4}, "tome": {"gflop": 3}}}
    done = subprocess.CompletedProcess([], 0, json.dumps(report), "")
    monkeypatch.setattr(subprocess, "run", lambda words, **_: done)
    found = command.judged_by_eval(plan.Run("shapes", "tome-all", 0.2, 0))
    assert found["command"][:4] == ["eval", "shapes", "--baseline", "tome:all:0.21"]
    assert found["flops_of_dense"] == 0.75 and found["quality"] == {"v_mse": 1}
    done.returncode, done.stderr = 2, "no such option"
    with pytest.raises(RuntimeError, match="diffratio eval shapes .*: no such option"):
        command.judged_by_eval(plan.Run("shapes", "atedm", 0.2, 0))


LT_TABLE = [[10, 8, 6, 5], [10, 7, 7, 7], [10, 10, 6, 6]]


@pytest.fixture
def systems(monkeypatch, tmp_path):
    """Results of systems that cost differently, in files, and sizes that take no time."""
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    tables_of = {"lt": LT_TABLE} | dict.fromkeys(("mod", "mod-floor", "mod-ramp"), [[8]] * 3)
    for method in (*tables_of, "tome-all", "atedm"):
        run = plan.Run("shapes", method, 0.2, 0)
        run.result.write_text(json.dumps({"setup": run.setup, "kept_tenths": tables_of.get(method)}))
    small = {"layers": 3, "width": 48, "heads": 2, "tokens": 36}
    size = latency.Size(lambda: Models(Options(**small)).dense, batch=2, text=5)
    monkeypatch.setattr(latency, "SIZES", {"shapes": size, "wide": size})
    monkeypatch.setattr(latency, "FILE", tmp_path / "latency.json")
    return latency.systems()


def test_steps_are_those_that_the_sampler_makes(systems):
    columns = zip(*LT_TABLE, strict=True)
    assert latency.steps_of(systems["lt"]) == {latency.Step(column): 5 for column in columns}
    assert latency.steps_of(systems["mod-floor"]) == {latency.Step((8, 8, 8), "floor"): 20}
    assert latency.steps_of(systems["mod"]) == latency.steps_of(systems["mod-ramp"])
    assert latency.steps_of(systems["tome-all"]) == {latency.Step(baseline="tome:all:0.21"): 1}


def test_a_step_runs_what_its_flops_say(systems):
    size = latency.SIZES["wide"]
    with torch.inference_mode():
        calls = latency.Calls(size)
        shape = TransformerShape.from_model(calls.dense, text_tokens=size.text)
        for step in {latency.Step(), *(one for run in systems.values() for one in latency.steps_of(run))}:
            calls.prepare(step)
            with Counting() as counting:
                calls(step)
            assert counting.count.flops == pytest.approx(size.batch * step.flops(shape), rel=0.01), step


def test_times_stand_beside_the_quality_of_today_s_systems(systems, monkeypatch, capsys):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    latency.main()
    assert "wide, lt: time " in capsys.readouterr().out
    monkeypatch.setitem(plan.SYSTEMS, "mod-ramp", plan.System("uniform MoD, growing", "mod", {"ramp": 0.5}))
    plan.setup.cache_clear()
    times = latency.load()
    plan.setup.cache_clear()
    small = times["sizes"]["shapes"]["systems"]
    assert small.keys() == {"mod", "mod-floor", "lt", "tome-all", "atedm", "all tokens"}
    assert all(own["time_of_dense"] > 0 and 0 < own["flops_of_dense"] < 1.01 for own in small.values())
    assert tables.cost_cells(times, "mod", 0.2)[1] == f"{small['mod']['flops_of_dense']:.3f}"
    assert tables.cost_cells(times, "mod", 0.3) == tables.cost_cells(times, "mod-ramp", 0.2) == [""] * 3
    runs = results(
        lambda run: 5 if run.method == "atedm" else 0.1, ("dense", "mod", "mod-ramp", "lt", "atedm")
    )
    points = tables.cost_points(runs, times)
    assert [one["name"] for one in points] == [
        *("dense, the same steps", "uniform MoD", "DiffRatio-LT", "AT-EDM, not trained")
    ]
    path = figure.draw_costs(plan.RESULTS / "costs.png", points, times)
    assert path.is_file()


def test_what_controls_gain_is_a_part_of_what_lt_gains():
    errors = {"mod": 0.5, "mod-ramp": 0.55, "mod-clean": 0.4, "lt": 0.3}
    runs = results(lambda run: errors[run.method], tuple(errors))
    del runs["digits", "mod-clean", 0.3], runs["digits", "lt", 0.2][1:]
    found = rows(tables.gains_table(runs))
    assert found["digits 20%, v-MSE"] == ["1", "0.2000", "-25%", "50%"]
    assert found["shapes 30%, all right"] == ["3", "0.2000", "-25%", "50%"]
    assert "digits 30%, v-MSE" not in found
