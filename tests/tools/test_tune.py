"""tools/tune/tune.py: what is written to the table of tiles, and from what."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffratio.plan import DEVICES
from diffratio_kernels._choice import Choice
from diffratio_kernels._triton import tiles as tile_table
from diffratio_kernels.ops.attention.op import choose_attention
from diffratio_kernels.ops.two_bin_attention.op import choose_two_bin_attention
from diffratio_kernels.testing import budget
from tools.aot.rules import NONE_OF
from tools.tune import candidates, ratios, subjects, tune

ROOT = Path(__file__).parents[2]
GPU = "NVIDIA H200"
ON = re.compile(rf"{GPU}, torch \d\S+, Triton \d\S+, commit 0123abc, \d{{4}}-\d\d-\d\d")
USUAL = dict.fromkeys(NONE_OF, 0) | {"occupancy": 0.125, "threads": 256}


def script(*arguments, **environment):
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tools.tune.tune", *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        command, cwd=ROOT, env=inherited | path | environment, capture_output=True, text=True
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(tile_table.TABLE.read_text())
    return path


@pytest.fixture
def tuning(monkeypatch):
    """The tuner, where every tile has one block of 256 threads on a multiprocessor."""
    monkeypatch.setattr(candidates, "costs", lambda *_: USUAL)
    return tune


@pytest.fixture
def on_gpu(tuning, monkeypatch):
    """`tune` as on a GPU, where the second candidate of each subject takes 0.8 of the library's time."""
    measured = []

    def beside_libraries(bucket, *_):
        measured.append(bucket)
        held = tile_table.ATTENTION_TILES["attention_fwd"][90][80]
        assert held == candidates.ATTENTION[90][1]  # the one that was found before
        return {"sdpa": 0.8, "cudnn": 1.1}, [{"name": "varlen", "refused": "not installed"}]

    def measure(subject, architecture, tiles, *_):
        measured.append(subject)
        return {tile: 0.8 if tile == tiles[1] else 0.9 for tile in tiles}

    monkeypatch.setattr(tuning, "right_tiles", lambda subject, architecture, tiles, *_: tiles)
    monkeypatch.setattr(tuning, "measure", measure)
    monkeypatch.setattr(tuning, "ratios", beside_libraries)
    monkeypatch.setattr(tuning, "commit", lambda: "0123abc")
    monkeypatch.setattr(tuning.torch.cuda, "get_device_name", lambda: GPU)
    monkeypatch.setattr(tile_table, "capability", lambda device: 90)
    return measured


def test_the_interpreter_checks_and_writes_nothing(file):
    before = file.read_text()
    done = script("--table", file, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 tiles within the error budget\n") == 5
    assert done.stdout.endswith(f"{len(ratios.REHEARSED)} ratios written and read\n")
    assert file.read_text() == before


def test_without_a_gpu_it_is_not_available(file):
    done = script("--table", file)
    assert (done.returncode, done.stdout) == (77, "there is no GPU\n")


def test_every_shape_is_measured_once_at_a_commit(tuning, on_gpu, file):
    assert tuning.tune(tuning.Table(file), 1) == (0, 0)
    attention, *products = tuning.subjects()
    assert on_gpu == [attention, *ratios.buckets(), *products]
    entries = json.loads(file.read_text())["products"]
    [entry] = [
        e for e in entries if (e["kernel"], e["architecture"], e["rows"]) == ("linear_scatter", 90, 8192)
    ]
    assert entry["tile"] == list(candidates.PRODUCTS[90][1]) and entry["of_library"] == 0.8
    assert entry["source"] == "measured" and ON.fullmatch(entry["on"])
    assert all((e["source"] == "predicted") == (e["architecture"] == 80) for e in entries)
    [attention] = [e for e in json.loads(file.read_text())["attention"] if e["source"] != "predicted"]
    assert (attention["kernel"], attention["held"]) == ("attention_fwd", 80)
    [entry] = [
        e for e in json.loads(file.read_text())["ratios"] if (e["kind"], e["queries"]) == ("self", 308)
    ]
    assert ON.fullmatch(entry.pop("on")) and entry == {
        "kind": "self", "architecture": 90, "queries": 308, "keys": 308, "head_dim": 72,
        "of": {"sdpa": 0.8, "cudnn": 1.1}, "source": "measured",
    }  # fmt: skip
    del on_gpu[1:]
    assert tuning.tune(tuning.Table(file), 1) == (0, 0) and len(on_gpu) == 1


def test_it_ends_in_time_and_goes_on(tuning, on_gpu, file):
    everything = len(tuning.subjects()) + len(ratios.buckets())
    assert tuning.tune(tuning.Table(file), -1) == (everything, 0) and on_gpu == []
    assert "measured" not in file.read_text()
    assert tuning.tune(tuning.Table(file), 1) == (0, 0) and len(on_gpu) == everything


def test_tiles_that_spill_are_not_measured(tuning, on_gpu, file, monkeypatch):
    first = candidates.PRODUCTS[90][0]

    def costs(kernel, columns, inner, architecture, tile):
        return USUAL | {"spills": int(tile == first)}

    monkeypatch.setattr(candidates, "costs", costs)
    tuning.tune(tuning.Table(file), 1)
    tiles = {tuple(e["tile"]) for e in json.loads(file.read_text())["products"] if e["source"] != "predicted"}
    assert tiles == {candidates.PRODUCTS[90][2]}


def test_a_wrong_tile_is_refused_and_the_others_are_measured(tuning, on_gpu, file, monkeypatch):
    def right_tiles(subject, architecture, tiles, *_):
        return tiles[:-1] if subject.rows == 8192 else () if subject.rows == 512 else tiles

    monkeypatch.setattr(tuning, "right_tiles", right_tiles)
    several, none = (sum(s.rows == rows for s in tuning.subjects()) for rows in (8192, 512))
    assert several and none
    refused = several + none * len(candidates.PRODUCTS[90])
    assert tuning.tune(tuning.Table(file), 1) == (0, refused)
    assert len(on_gpu) == len(tuning.subjects()) + len(ratios.buckets()) - none


def test_a_wrong_result_is_no_right_tile(tuning, monkeypatch, capsys):
    [subject] = subjects.subjects(width=40, hidden=72, rows=(33,))[1:2]
    wrong = subjects.Ways(lambda t: t["hidden"], *list(vars(subjects.WAYS[subject.kernel]).values())[1:])
    monkeypatch.setattr(budget, "worst", {})  # the table of a run is not about this
    monkeypatch.setitem(subjects.WAYS, subject.kernel, wrong)
    assert tuning.right_tiles(subject, 80, ((32, 32, 32, 8, 4, 1),), tuning.torch.float16, "cpu") == ()
    said = capsys.readouterr().out
    assert said.startswith("refused: ") and "linear_gate_residual" in said and "over the budget" in said


def test_what_fails_costs_its_own_shape(tuning, on_gpu, file, monkeypatch, capsys):
    """A candidate of ours that is refused, a library that is not installed, a shape that cannot be drawn."""
    measure, beside = tuning.measure, tuning.ratios

    def failing(subject, *arguments):
        if subject.rows == 8192:
            raise RuntimeError("out of memory\nmore")
        return measure(subject, *arguments)

    def refusing(bucket, *arguments):
        of, refused = beside(bucket, *arguments)
        wrong = {"name": "triton", "refused": "over the budget", "failed": True}
        return ({}, [wrong]) if bucket.kind == "two_bins" else (of, refused)

    monkeypatch.setattr(tuning, "measure", failing)
    monkeypatch.setattr(tuning, "ratios", refusing)
    several = sum(s.rows == 8192 for s in tuning.subjects()) + sum(
        b.kind == "two_bins" for b in ratios.buckets()
    )
    assert tuning.tune(tuning.Table(file), 1) == (0, several)
    said = capsys.readouterr().out
    assert said.count(": out of memory\n") == sum(s.rows == 8192 for s in tuning.subjects())
    assert said.count(": triton: over the budget\n") == several - said.count("out of memory")
    table = json.loads(file.read_text())
    assert "two_bins" not in {entry["kind"] for entry in table["ratios"]}
    assert {e["rows"] for e in table["products"] if e["source"] == "measured"} == (
        {s.rows for s in tuning.subjects()[1:]} - {8192}
    )


def test_a_tile_that_does_not_compile_is_launched_and_so_refused(tuning, monkeypatch):
    def fail(*_):
        raise RuntimeError("ptxas")

    monkeypatch.setattr(candidates, "costs", fail)
    assert tuning.may_run(tuning.subjects()[1], 90, candidates.PRODUCTS[90][0])


def test_a_tile_that_cannot_be_captured_is_refused(tuning, monkeypatch, capsys):
    [subject] = subjects.subjects(width=16, hidden=16, rows=(17,))[1:2]
    monkeypatch.setattr(tuning, "passes_of", passes_of)
    monkeypatch.setattr(tuning, "rotating_times", lambda passes, *_, **__: dict.fromkeys(passes, Once()))
    assert tuning.measure(subject, 90, ("bad", "good"), torch.float32, "cpu", 1) == {"good": 1.0}
    assert capsys.readouterr().out.endswith(" bad: it waits\n")


class Once:
    def ratio(self, other):
        return 1.0


def passes_of(lists, graphs, refusals):
    [name] = lists
    if name == "bad":
        return {}, {name: RuntimeError("it waits")}
    return {name: lambda: None}, {}


@pytest.mark.parametrize("bucket", ratios.REHEARSED, ids=str)
def test_ratios_are_ours_over_a_librarys_of_what_is_right(bucket, monkeypatch):
    subject = ratios.subject_of(bucket, torch.float32, "cpu")
    assert [(c.name, c.ours) for c in subject.candidates] == [
        ("triton", True), ("sdpa", False), ("cudnn", False), ("varlen", False), ("flash_attn", False)
    ]  # fmt: skip
    ours, sdpa, *_ = subject.candidates
    sdpa.verify(subject.make(0))
    rows = [
        {"name": "triton", "of_baseline": 1.0, "cache": "cold"},
        {"name": "sdpa", "of_baseline": 1.25, "cache": "cold"},
        {"name": "sdpa", "of_baseline": 2.0, "cache": "warm"},
        {"name": "varlen", "refused": "not installed"},
    ]
    monkeypatch.setattr(ratios, "measure", lambda *_, **__: rows)
    assert ratios.ratios(bucket, torch.float32, "cpu", 1) == ({"sdpa": 0.8}, rows[3:])


@pytest.mark.parametrize("bucket", ratios.REHEARSED, ids=str)
def test_auto_looks_a_case_up_where_its_ratio_is(bucket, monkeypatch):
    asked = []
    for name in ("attention", "two_bin_attention"):
        module = importlib.import_module(f"diffratio_kernels.ops.{name}.op")
        monkeypatch.setattr(module, "choose", lambda op, backend, *_: backend)
        monkeypatch.setattr(module, "attention_choice", lambda call: asked.append(call) or Choice("", ""))
    case = ratios.subject_of(bucket, torch.float32, "cpu").make(0)
    operands = [SimpleNamespace(shape=case[n].shape, dtype=None, device=torch.device("cuda")) for n in
                ("query", "key")]  # fmt: skip
    if bucket.kind == "two_bins":
        names = "cu_seqlens_large", "cu_seqlens_small", "max_seqlen_large", "max_seqlen_small", "small"
        choose_two_bin_attention("auto", *operands, None, *(case[name] for name in names), None)
    else:
        names = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "key_lengths"
        choose_attention("auto", *operands, None, *(case.get(name) for name in names), None)
    [call] = asked
    key = {name: getattr(call, name) for name in ("kind", "queries", "keys", "head_dim")}
    assert key | {"architecture": 90} == bucket.key(90)
    assert call.padded == (bucket.kind == "ragged") and not call.grouped


def test_predictions_leave_what_was_measured(tuning, on_gpu, file):
    tuning.tune(tuning.Table(file), 1)
    before = json.loads(file.read_text())["products"]
    tuning.predict(tuning.Table(file))
    after = json.loads(file.read_text())["products"]
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert old == new or (old["source"] == new["source"] == "predicted" and new["architecture"] == 80)


def test_an_epilogue_costs_less_where_a_second_block_hides_it(tuning, monkeypatch):
    device = DEVICES["h200"]
    [subject] = [s for s in tuning.subjects() if (s.kernel, s.rows) == ("linear_gate_residual", 8192)]
    tile = candidates.PRODUCTS[90][0]
    alone = candidates.seconds(subject, 90, tile, device)
    monkeypatch.setattr(candidates, "costs", lambda *_: USUAL | {"occupancy": 0.25})
    assert alone - candidates.seconds(subject, 90, tile, device) == pytest.approx(
        2 * 2 * 8192 * 1152 / device.bandwidth
    )


def test_a_copy_of_the_bypassed_rows_is_a_launch_of_its_own(tuning, monkeypatch):
    device, tile = DEVICES["h200"], candidates.PRODUCTS[90][0]
    [subject] = [s for s in tuning.subjects() if (s.kernel, s.rows) == ("linear_scatter", 8192)]
    for occupancy in (0.125, 0.25):
        monkeypatch.setattr(candidates, "costs", lambda *_, o=occupancy: USUAL | {"occupancy": o})
        whole = candidates.seconds(subject, 90, tile, device)
        with monkeypatch.context() as inside:
            inside.setattr(candidates, "LAUNCHES_BEFORE", {})
            alone = candidates.seconds(subject, 90, tile, device)
        assert whole - alone == pytest.approx(device.launch_seconds)


def test_the_table_that_ships_is_written_by_the_tuner(tuning, file):
    table = tuning.Table(file)
    table.save()
    assert file.read_text() == tile_table.TABLE.read_text()
