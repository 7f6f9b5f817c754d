"""The repainting half of the reproduction: its plan, what a step costs, and its tables."""

import json
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.reproduction import plan, repainting, tables, twins, twins_tables
from benchmarks.reproduction import run as command
from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.evaluation.target import Target
from diffratio.inpainting.systems import SYSTEMS, system_of
from diffratio.toy import PRETRAINED, load_pixart
from diffratio.train import TrainArguments

LAZY_LT = twins.Repaint("twins", "lt", 0.3, 3, "lazy")


def test_every_system_is_trained_as_its_name_says():
    for run in twins.all_repaints([3]):
        arguments = TrainArguments(**run.training)
        assert (arguments.task, arguments.system, arguments.masks) == ("inpaint", run.system, "object")
        assert arguments.method == ("dense" if run.method == "start" else run.method)
        assert arguments.regions == (10 if run.method == "lt" else 1)
        assert arguments.target_compression == run.target
        assert arguments.seed == (0 if run.method == "start" else 3)
    assert set(twins.SYSTEMS) == set(SYSTEMS)


def test_a_run_begins_with_the_start_of_its_system(monkeypatch):
    start = LAZY_LT.start
    assert (start.name, start.base) == ("twins-lazy-start", "shapes")
    assert Path(LAZY_LT.base) == start.folder / "final"
    assert "/" not in LAZY_LT.training["pretrained_model_name_or_path"]  # a result tells of no folder
    before = LAZY_LT.setup
    assert before == twins.Repaint("twins", "lt", 0.3, 4, "lazy").setup
    assert len({run.setup for run in twins.all_repaints([0])}) == len(twins.all_repaints([0]))
    monkeypatch.setitem(twins.STARTING, "max_train_steps", 7)
    assert LAZY_LT.setup != before


def test_starts_are_trained_before_what_begins_with_them(monkeypatch, tmp_path):
    """The start's own result may be there; what it trained may not."""
    done = []
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "train_once", lambda run: done.append(run.name))
    monkeypatch.setattr(command, "finish", lambda run, facts: done.append(run.name) or run.name)
    monkeypatch.setattr(command, "ProcessPoolExecutor", Now)
    monkeypatch.setattr("sys.argv", ["run", "--system", "lazy", "--system", "crop", "--method", "lt"])
    command.main()
    starts = ["twins-lazy-start", "twins-crop-start"]
    names = [f"twins-{system}-lt-30-seed{seed}" for seed in plan.SEEDS for system in ("lazy", "crop")]
    assert sorted(done[:2]) == sorted(starts) and done[2:] == names


class Now:
    """A pool that does what it is given at once."""

    def __init__(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, call, *args):
        found = Future()
        found.set_result(call(*args))
        return found


@pytest.mark.parametrize(("system", "tokens"), [("lazy", 16), ("image", 64), ("crop", 16)])
def test_a_step_costs_what_it_computes(system, tokens):
    """The hole is a quarter of the tokens, and so is a crop."""
    image = system_of("image").from_pixart(load_pixart(PRETRAINED["shapes"]))
    model = system_of(system).from_pixart(load_pixart(PRETRAINED["shapes"])).eval()
    target = Target(model, system, run={"arguments": {"task": "inpaint", "system": system}})
    whole = TransformerShape.from_model(image, text_tokens=5)
    own = replace(whole, tokens=tokens)
    more = 0
    if system == "lazy":  # fuses, and embeds the whole picture of three channels
        more = 2 * 96 * (2 * 96 * tokens + 3 * 16 * 64 - 7 * 16 * tokens)
    costs = []
    for kept in (None, tokens // 2):
        if kept:
            apply_diffratio(model, DiffRatioConfig(compression=0.5))
        costs.append(repainting.repainting_flops(target))
        expected = (transformer_flops(own, kept).total + more) / transformer_flops(whole).total
        assert costs[-1]["flops_of_dense"] == pytest.approx(expected, rel=1e-3)
    dense, routed = (cost["encoder_flops_of_dense"] for cost in costs)
    assert dense == routed and (dense > 0.5) == (system == "lazy")


def result(run, matched):
    quality = {"accuracy_joint": matched, "accuracy_mean": matched, "hole_error": 1 - matched}
    quality |= {"v_mse": 1 - matched, "frechet": 1 - matched, "outside_differing": 0}
    costs = {"mean_kept_in_bins": 1 - run.target, "flops_of_dense": 0.3, "encoder_flops_of_dense": 0.5}
    other = {"hidden": quality | {"accuracy_joint": 0.04, "outside_differing": 1}, "real": quality}
    return vars(run) | {"setup": run.setup, "quality": quality} | other | costs


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Results in files: of the lazy system all, of image the start and one dense run."""
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    matched = {"start": 0.5, "dense": 0.6, "mod": 0.2, "l": 0.3, "lt": 0.4}
    image = [
        twins.Repaint("twins", "start", 0.0, 0, "image"),
        twins.Repaint("twins", "dense", 0.0, 0, "image"),
    ]
    for run in [*(run for run in twins.all_repaints() if run.system == "lazy"), *image]:
        found = matched[run.method] + 0.15 * (run.method == "mod") * run.seed
        run.result.write_text(json.dumps(result(run, found)))
    return tmp_path


def cells(lines):
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {first: rest for first, *rest in rows}


def test_rows_tell_what_was_measured_and_what_was_not(results):
    [missing, _] = twins_tables.missing_lines()
    assert "RegenerateImage, dense, the same steps (2 of 3 runs)" in missing and "lazy" not in missing
    found = cells(twins_tables.quality_table(twins_tables.load()))
    assert list(found) == [
        *("model", "real held-out images", "lazy, dense, before", "lazy, dense, the same steps"),
        *("lazy, uniform MoD, 30%", "lazy, DiffRatio-L, 30%", "lazy, DiffRatio-LT, 30%"),
        *("RegenerateImage, dense, before", "RegenerateImage, dense, the same steps"),
    ]
    assert {len(row) for name, row in found.items() if name != "real held-out images"} == {11}
    assert found["lazy, uniform MoD, 30%"][4] == "0.350 ± 0.150"
    assert found["lazy, DiffRatio-LT, 30%"][5] == "0.040 ± 0.000"
    assert found["lazy, DiffRatio-LT, 30%"][-1] == "3"  # pixels, of both paintings of three seeds


def test_systems_that_repaint_are_compared_seed_by_seed(results):
    found = cells(twins_tables.pairs_table(twins_tables.load()))
    assert found["lazy, DiffRatio-LT, 30% than lazy, uniform MoD, 30%"] == ["2 of 3"] * 4
    image = found["RegenerateImage, dense, the same steps than lazy, dense, the same steps"]
    assert image == ["0 of 1"] * 4


def test_results_of_other_settings_are_left_out(results, monkeypatch):
    monkeypatch.setitem(twins.STARTING, "learning_rate", 1e-5)
    assert twins_tables.load() == {}
    assert len(twins_tables.lines()) == 2


def test_the_document_has_room_for_both_halves():
    text = tables.DOCUMENT.read_text()
    for start in (tables.START, tables.REPAINTING):
        assert text.count(start) == 1 and tables.END in text.split(start)[1]
