"""The paper's tables at the sizes of a rehearsal: every system is a row, a stopped run goes on, and nothing
that is predicted is called measured."""

import json

import pytest
import torch

from benchmarks.a100 import __main__ as command
from benchmarks.a100 import measure as measuring
from benchmarks.a100 import show
from benchmarks.a100.overhead import Choosing, Figure
from benchmarks.a100.predict import device_named, flops, measuring_seconds, predicted_seconds
from benchmarks.a100.steps import TINY, Sizes, Subjects, all_steps
from benchmarks.a100.systems import TABLE_1, layerwise, timestepwise
from benchmarks.harness import measure as harness
from benchmarks.suites.case import BlockCase
from diffratio.baselines.tome import Matching
from diffratio.evaluation.flops import PRESETS, transformer_flops
from diffratio.evaluation.published import published
from diffratio_kernels.testing import budget

STEPS = {step.name: step for step in all_steps(TINY)}
FULL = {step.name: step for step in all_steps(Sizes())}
REFUSED = {"lazy, tome:mlp:0.3", "lazy, tome:attn:0.3", "lazy, tome:all:0.3", "lazy, atedm:0.3"}
"""Neither 2 x 2 squares nor the number of a hole's tokens are given."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(budget, "worst", {})
    monkeypatch.setattr(harness, "PASS_SECONDS", 0)
    monkeypatch.setattr("benchmarks.harness.timing.cache_bytes", lambda device: 1)


def run(tmp_path, *words):
    code = command.main(["--device", "cpu", "--tiny", "--rounds", "1", "--out", str(tmp_path), *words])
    [path] = tmp_path.glob("*-paper-tables.json")
    return code, json.loads(path.read_text())


def test_every_system_is_a_row_with_what_the_tables_want(tmp_path, capsys):
    code, found = run(tmp_path, "--step", "table1-fp32-1", "--step", "table2-256-fp32-1", "--json")
    assert code == 0 and found["machine"]["versions"]["torch"] == torch.__version__
    rows = {(row["step"], row["system"]): row for row in found["rows"]}
    assert {name for step, name in rows if step == "table1-fp32-1"} == {system.name for system in TABLE_1}
    assert {name for _, name in rows if "image" in name or "crop" in name} == {"image, dense", "crop, dense"}
    assert {row["system"] for row in rows.values() if "refused" in row} == REFUSED
    for row in rows.values():
        assert row["commit"] and row["samples"] == 2 and "failed" not in row
        if "refused" not in row:
            assert all(row[key] > 0 for key in ("seconds", "peak_bytes", "layer_seconds", "layer_peak_bytes"))
    dense, routed = rows["table1-fp32-1", "dense"], rows["table1-fp32-1", "DiffRatio-LT"]
    assert dense["of_dense"] == 1.0 and (dense["regions"], routed["regions"]) == (1, 4)
    assert routed["layer_peak_bytes"] < dense["layer_peak_bytes"]
    assert rows["table2-256-fp32-1", "image, dense"]["tokens"] == 64
    assert rows["table2-256-fp32-1", "lazy, dense"]["tokens"] == 4
    assert [json.loads(line)["system"] for line in capsys.readouterr().out.splitlines()]


def test_a_stopped_run_goes_on_and_another_commit_begins_again(tmp_path, monkeypatch):
    measured = []

    def measure(step, subjects, work, rounds, progress):
        measured.append(work.name)
        return {"step": step.name, "system": work.name, "seconds": 1.0}

    monkeypatch.setattr(command, "measure", measure)
    words = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--step", "table1-fp32-1"]
    assert command.main([*words, "--minutes", "0"]) == command.NOT_ALL and not measured
    code, found = run(tmp_path, "--step", "table1-fp32-1")
    assert code == 0 and len(measured) == len(found["rows"]) == len(TABLE_1)
    assert run(tmp_path, "--step", "table1-fp32-1")[0] == 0 and len(measured) == len(TABLE_1)
    monkeypatch.setattr(command, "machine", lambda: found["machine"] | {"commit": "another"})
    code, found = run(tmp_path, "--step", "table1-fp32-1")
    assert code == 0 and len(measured) == 2 * len(TABLE_1) == 2 * len(found["rows"])


def test_what_fails_is_a_row_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    figures = measuring._figures

    def failing(subjects, work, *others):
        if work.name == "tome:mlp:0.2":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        if work.name == "mod:0.2":
            raise RuntimeError("a planted fault")
        return figures(subjects, work, *others)

    monkeypatch.setattr(measuring, "_figures", failing)
    code, found = run(tmp_path, "--step", "table1-fp32-1")
    refused = {row["system"]: row for row in found["rows"] if "refused" in row}
    assert code == 1 and len(found["rows"]) == len(TABLE_1)
    assert refused["tome:mlp:0.2"]["refused"].startswith("out of memory: CUDA")
    assert "failed" not in refused["tome:mlp:0.2"] and refused["mod:0.2"]["failed"]
    printed = capsys.readouterr()
    assert "failed: mod:0.2" in printed.err and "a planted fault" in printed.out


def test_figure_3_has_both_choices_at_every_token_count(tmp_path):
    code, found = run(tmp_path, "--step", "figure3-fp32")
    assert code == 0 and {row["tokens"] for row in found["rows"]} == {4, 16, 64}
    for tokens in (4, 16, 64):
        rows = [row for row in found["rows"] if row["tokens"] == tokens]
        assert {"router", "ToMe's matching"} <= {row["name"] for row in rows}
        assert sum(row["name"] == "router, block" for row in rows) == 5
        assert all("refused" not in row for row in rows)
    cells = list(show.figure(Figure("fp32", TINY), found["rows"]))
    assert len(cells) == len(found["rows"]) and cells[0][4] == "1.000"


def test_what_is_chosen_is_what_the_systems_choose():
    own = BlockCase(Figure("fp32", TINY).options(16, "cpu"))
    assert len(Choosing(0.2).by_router(own)) == 2 * 13
    into = Choosing(0.2).by_matching(own)
    assert torch.equal(into, Matching(own.x, (4, 4), 3, torch.zeros(2, 2, dtype=torch.int64)).into)


@pytest.mark.parametrize("compression", [0.2, 0.3])
@pytest.mark.parametrize("regions", [4, 10])
def test_learned_tables_have_their_mean_and_compress_noisy_steps_more(compression, regions):
    for table in (layerwise(compression)(28), timestepwise(compression, regions)(28)):
        cells = [cell for row in table for cell in row]
        assert sum(cells) / len(cells) == pytest.approx(compression)
    clean, noisy = table[0][0], table[0][-1]
    assert clean < noisy and table[0][0] < table[14][0]


def test_systems_cost_what_table_1_says():
    step = FULL["table1-bf16-16"]
    for work in step.works:
        row = work.system.method and published(
            "t2i", "pixart-sigma", work.system.method, work.system.compression
        )
        if not row:
            continue
        kept, method = work.system.kept(step.shape("pixart"))
        count = transformer_flops(
            PRESETS["pixart-xl-512"], kept, convention="paper", batch=16, method=method
        ).total
        assert count / 1e9 == pytest.approx(row.figures["16"]["gflop"], rel=2e-3), work.name


def test_predictions_follow_flops_and_are_told_apart_from_measurements():
    step, device = FULL["table1-fp32-128"], device_named("a100", "fp32")
    works = {work.name: work for work in step.works}
    dense = predicted_seconds(step, works["dense"], device)
    assert dense > 15 and flops(step, works["dense"]) == pytest.approx(256 * 1.236e12, rel=1e-3)
    for name in ("mod:0.2:floor", "DiffRatio-L", "tome:mlp:0.2", "atedm:0.2"):
        seconds, work = show.predicted(step, works[name], device)
        assert 0.7 < work < seconds + 0.02 < 1
    half = device_named("a100", "bf16")
    assert predicted_seconds(FULL["table1-bf16-128"], works["dense"], half) < dense / 8
    lt = measuring_seconds(step, works["DiffRatio-LT"], device, 3)
    assert lt > 3 * measuring_seconds(step, works["DiffRatio-L"], device, 3)
    for cells in show.table(step, [], device):
        named = dict(zip(show.HEAD[:5], cells, strict=False))
        assert named["ms a forward"] == named["of dense"] == "" and float(named["predicted"]) > 0


def test_the_papers_figures_stand_beside():
    rows = {cells[0]: cells for cells in show.table(FULL["table1-fp32-16"], [], device_named("a100", "fp32"))}
    assert rows["DiffRatio-LT"][5:7] == ["179.71", "0.797"] and rows["tome:attn:0.2"][5:7] == ["", ""]
    assert rows["mod:0.2:floor"][10:12] == ["1.659", "0.923"]
    text = "\n".join(show.differences(FULL["table2-256-bf16-128"], []))
    assert "latency, part saved of lt against image: paper 0.6026, here not measured" in text
    assert "gflop, part saved of lt against image: paper 0.7351, here 0.9" in text


def test_models_are_let_go_and_left_as_they_were():
    step = STEPS["table1-fp32-1"]
    subjects = Subjects(step, "cpu")
    [work] = [work for work in step.works if work.name == "DiffRatio-LT"]
    before = set(subjects.model("pixart").state_dict())
    measuring.measure(step, subjects, work, 1, progress=False)
    assert set(subjects.model("pixart").state_dict()) == before
    assert [one["timestep"][0].item() for one in subjects.calls("pixart", 4)] == [125, 375, 625, 875]


def test_a_rehearsal_is_no_result():
    with pytest.raises(SystemExit):
        command.main(["--tiny", "--device", "cpu"])
